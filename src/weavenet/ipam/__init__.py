"""Who owns which addresses."""
