{{- define "c8y-realtime-proxy.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for `-admin` to follow. */}}
{{- define "c8y-realtime-proxy.fullname" -}}
{{- $name := include "c8y-realtime-proxy.name" . }}
{{- $whole := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $whole | trunc 57 | trimSuffix "-" }}
{{- end }}

{{- define "c8y-realtime-proxy.selector" -}}
app.kubernetes.io/name: {{ include "c8y-realtime-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "c8y-realtime-proxy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "c8y-realtime-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "c8y-realtime-proxy.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{/* The port of a URL: the one that it says, or that of its scheme. */}}
{{- define "c8y-realtime-proxy.portOf" -}}
{{- $url := urlParse . }}
{{- $said := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) }}
{{- $said | default (get (dict "http" "80" "https" "443" "redis" "6379" "rediss" "6379") $url.scheme) }}
{{- end }}

{{/* Where the files are that Secrets and ConfigMaps hold. */}}
{{- define "c8y-realtime-proxy.configDirectory" -}}/run/c8y-realtime-proxy/config{{- end }}
{{- define "c8y-realtime-proxy.secretsDirectory" -}}/run/c8y-realtime-proxy/secrets{{- end }}

{{/* The file of the configuration: the values' own, and what follows from the others. */}}
{{- define "c8y-realtime-proxy.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $secrets := include "c8y-realtime-proxy.secretsDirectory" . }}
{{- $frontdoor := $config.frontdoor | default dict }}
{{- $gate := $config.gate | default dict }}
{{- $_ := set $gate "client_id_key_file" (printf "%s/client-id-key" $secrets) }}
{{- if not $frontdoor.public_origin }}
{{- $_ := set $frontdoor "public_origin" (printf "https://%s" .Values.ingress.host) }}
{{- end }}
{{- with .Values.redis }}
{{- if .url }}
{{- $_ := set $frontdoor "redis_url" .url }}
{{- $_ := set $frontdoor "session_key_file" (printf "%s/session-key" $secrets) }}
{{- if .password.secret }}
{{- $_ := set $frontdoor "redis_password_file" (printf "%s/redis-password" $secrets) }}
{{- end }}
{{- if or .ca.secret .ca.configMap }}
{{- $_ := set $frontdoor "redis_ca_file" (printf "%s/redis-ca.crt" $secrets) }}
{{- end }}
{{- end }}
{{- end }}
{{- $_ := set $config "frontdoor" $frontdoor }}
{{- $_ := set $config "gate" $gate }}
{{- include "c8y-realtime-proxy.wholeNumbers" $config }}
{{- toToml $config | trim }}
{{- end }}

{{/* Helm reads every number of a values file as a fraction, and would write 8080 as 8080.0, which is no port. */}}
{{- define "c8y-realtime-proxy.wholeNumbers" -}}
{{- range $key, $value := . }}
{{- if kindIs "map" $value }}
{{- include "c8y-realtime-proxy.wholeNumbers" $value }}
{{- else if kindIs "slice" $value }}
{{- range $value }}{{ if kindIs "map" . }}{{ include "c8y-realtime-proxy.wholeNumbers" . }}{{ end }}{{ end }}
{{- else if and (kindIs "float64" $value) (eq $value (floor $value)) }}
{{- $_ := set $ $key (int64 $value) }}
{{- end }}
{{- end }}
{{- end }}
