"""The Kubernetes API: asking, listing and watching, and the few objects that we write."""
