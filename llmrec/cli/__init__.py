"""The command `llmrec`: what a clone is used with, after `pip install` (docs/cli.md)."""
