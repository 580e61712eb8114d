"""Features of items: a matrix made of texts, pictures, columns and training sequences."""

from llmrec.features.item_features import ItemFeatures

__all__ = ["ItemFeatures"]
