"""Bytes: parsing and building, with no idea what they are for."""
