"""A job on Kubernetes: its manifests, by pure functions, and what asks a cluster."""
