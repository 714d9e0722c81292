"""The control API: its bodies, its texts, its client."""
