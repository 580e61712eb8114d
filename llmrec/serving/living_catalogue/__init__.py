"""The living catalogue: versions of a model folder's items, the durable log of changes, Semantic IDs for newcomers."""
