"""Serving through vLLM; the only place of llmrec that imports it."""
