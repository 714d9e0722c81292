"""What the host's kernel should look like, and how to get there."""
