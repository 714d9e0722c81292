"""How packets cross between two connected peers."""
