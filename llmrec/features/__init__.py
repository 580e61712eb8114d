"""Features of items: a matrix made of texts, pictures, columns and training sequences."""

from llmrec.features.item_features import ItemFeatures
from llmrec.features.parts.part import FeaturePart, rows_in_training

__all__ = ["FeaturePart", "ItemFeatures", "rows_in_training"]
