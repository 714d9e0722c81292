"""weavenet: a Kubernetes network plugin on Weave Net's wire protocols."""
