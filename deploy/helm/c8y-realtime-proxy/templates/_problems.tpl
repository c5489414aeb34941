{{/*
What the schema cannot see: values that are missing, or that contradict each other. All that is wrong is told at once, and
no value is quoted, since somebody may have put a secret there.
*/}}
{{- define "c8y-realtime-proxy.check" -}}
{{- $problems := list }}
{{- $config := .Values.config }}
{{- $frontdoor := $config.frontdoor | default dict }}
{{- $gate := $config.gate | default dict }}
{{- $source := dig "credentials" "default" "source" "" $config }}
{{- $origin := $frontdoor.public_origin | default "" }}
{{- $ingress := .Values.ingress }}
{{- $redis := .Values.redis }}

{{- if not (dig "upstream" "url" "" $config) }}
{{- $problems = append $problems "config.upstream.url: expected the address of the tenant, such as https://tenant.example.com" }}
{{- end }}
{{- if not (has $source (list "session" "cookie")) }}
{{- $problems = append $problems "config.credentials.default.source: expected session or cookie: this is a front door, where each user is who they are" }}
{{- end }}
{{- if not .Values.keys.secret }}
{{- $problems = append $problems (printf "keys.secret: expected the name of a Secret with the entry %s, and %s where sessions are kept in Redis; docs/howto-helm.md tells how to make it" .Values.keys.clientIdKey .Values.keys.sessionKey) }}
{{- end }}
{{- if not $gate.trusted_proxies }}
{{- $problems = append $problems "config.gate.trusted_proxies: expected the networks of the ingress controller's pods, such as [10.0.0.0/8]: without them, all clients have its address, and share its limits" }}
{{- end }}

{{- /* What the chart says itself. */}}
{{- $owned := dict
  "frontdoor.redis_url" "redis.url"
  "frontdoor.redis_password_file" "redis.password.secret"
  "frontdoor.redis_ca_file" "redis.ca.secret"
  "frontdoor.sessions_file" "redis.url, since a pod keeps no files"
  "frontdoor.session_key_file" "keys.secret"
  "gate.client_id_key_file" "keys.secret" }}
{{- range $key, $place := $owned }}
{{- $path := splitList "." $key }}
{{- if dig (index $path 0) (index $path 1) "" $config }}
{{- $problems = append $problems (printf "config.%s: expected in its place %s" $key $place) }}
{{- end }}
{{- end }}
{{- if dig "listen" "socket" "" $config }}
{{- $problems = append $problems "config.listen.socket: expected none: the Service reaches pods by a port" }}
{{- end }}
{{- range $listener := list "listen" "admin" }}
{{- if has (dig $listener "host" "" $config) (list "" "localhost" "127.0.0.1" "::1") }}
{{- $problems = append $problems (printf "config.%s.host: expected an address beyond the pod's loopback, such as 0.0.0.0" $listener) }}
{{- end }}
{{- if not (dig $listener "port" 0 $config) }}
{{- $problems = append $problems (printf "config.%s.port: expected a port, and not any free one: it is named elsewhere, too" $listener) }}
{{- end }}
{{- end }}
{{- if eq (dig "listen" "port" 1 $config | int) (dig "admin" "port" 2 $config | int) }}
{{- $problems = append $problems "config.admin.port: expected another port than that of config.listen.port" }}
{{- end }}
{{- if contains "@" (dig "upstream" "proxy_url" "" $config) }}
{{- $problems = append $problems "config.upstream.proxy_url: expected no user and password within it: this is written into a ConfigMap. Have that proxy admit the pods by their address" }}
{{- end }}

{{- /* Where browsers come from. */}}
{{- if and $ingress.enabled (not $ingress.host) }}
{{- $problems = append $problems "ingress.host: expected the host by which browsers reach this, such as app.example.com" }}
{{- else if and $ingress.enabled $origin (ne (regexReplaceAll ":[0-9]+$" (urlParse $origin).host "") $ingress.host) }}
{{- $problems = append $problems "config.frontdoor.public_origin: expected the host of ingress.host" }}
{{- else if not (or $ingress.enabled $origin) }}
{{- $problems = append $problems "config.frontdoor.public_origin: expected the origin by which browsers reach this, such as https://app.example.com, since there is no ingress" }}
{{- end }}
{{- if $ingress.enabled }}
{{- range $listed := $frontdoor.platform_paths }}
{{- $path := regexReplaceAll "^[A-Z]+ " $listed "" }}
{{- $isServed := false }}
{{- range $ingress.paths }}
{{- if or (eq . "/") (eq . $path) (hasPrefix (printf "%s/" (trimSuffix "/" .)) $path) }}{{ $isServed = true }}{{ end }}
{{- end }}
{{- if not $isServed }}
{{- $problems = append $problems (printf "ingress.paths: expected one that %s is below, since config.frontdoor.platform_paths lists it" $path) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Where sessions are. */}}
{{- $most := .Values.autoscaling.enabled | ternary .Values.autoscaling.maxReplicas .Values.replicas | int }}
{{- if eq $source "cookie" }}
{{- if $redis.url }}
{{- $problems = append $problems "redis.url: expected with config.credentials.default.source = session only: with cookie, nothing is kept here" }}
{{- end }}
{{- else if and (gt $most 1) (not $redis.url) }}
{{- $problems = append $problems "redis.url: expected, since there may be more than one replica: each would have sessions of its own" }}
{{- end }}
{{- if regexMatch "^[a-z]+://[^/]*:[^/]*@" $redis.url }}
{{- $problems = append $problems "redis.url: expected no password within it: name the Secret that holds it in redis.password.secret" }}
{{- end }}
{{- if and (not $redis.url) (or $redis.password.secret $redis.ca.secret $redis.ca.configMap) }}
{{- $problems = append $problems "redis.url: expected, since its password or its authority is said" }}
{{- end }}
{{- if and $redis.ca.secret $redis.ca.configMap }}
{{- $problems = append $problems "redis.ca: expected a Secret or a ConfigMap, not both" }}
{{- end }}
{{- if and $redis.url (or $redis.ca.secret $redis.ca.configMap) (not (hasPrefix "rediss:" $redis.url)) }}
{{- $problems = append $problems "redis.ca: expected with a redis.url that begins with rediss://, for TLS" }}
{{- end }}

{{- with .Values.autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{- $problems = append $problems "autoscaling.minReplicas: expected no more than autoscaling.maxReplicas" }}
{{- end }}
{{- if and .enabled (not (dig "requests" "cpu" "" $.Values.resources)) }}
{{- $problems = append $problems "resources.requests.cpu: expected, since autoscaling goes by the percentage of it" }}
{{- end }}
{{- end }}
{{- with .Values.networkPolicy }}
{{- if and .enabled (not .ingressFrom) }}
{{- $problems = append $problems "networkPolicy.ingressFrom: expected who the ingress controller is, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}}]" }}
{{- end }}
{{- if and .enabled $.Values.serviceMonitor.enabled (not .monitoringFrom) }}
{{- $problems = append $problems "networkPolicy.monitoringFrom: expected who Prometheus is, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}], since there is a ServiceMonitor" }}
{{- end }}
{{- end }}

{{- if $problems }}
{{- fail (printf "\n\n%s\n" (join "\n" $problems)) }}
{{- end }}
{{- end }}
