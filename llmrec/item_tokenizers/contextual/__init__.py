"""Tokens of an item that depend on what the user did before."""
