"""The weaver process."""
