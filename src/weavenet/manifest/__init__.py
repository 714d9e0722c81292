"""What `kubectl apply` is given: the DaemonSet and its rights, as `weave manifest` and as a small web service."""
