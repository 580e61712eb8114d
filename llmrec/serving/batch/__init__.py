"""Recommendations for a whole file, here or on Ray."""
