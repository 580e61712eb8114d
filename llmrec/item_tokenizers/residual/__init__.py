"""Residual quantisation: k-means and learned codebooks, a level after the other."""
