"""Semantic IDs beside tokens for kinds of interaction."""
