"""The weave command."""
