"""Semantic IDs in words that the LLM knows."""
