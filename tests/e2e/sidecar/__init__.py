"""The sidecar in Kubernetes: what kustomize makes of its manifests, and what becomes of that."""
