"""Item-level metrics with confidence intervals, slices, controls and a report over any number of recommenders."""

from llmrec.evaluation.controls import CONTROLS, shuffle_histories, shuffle_order
from llmrec.evaluation.evaluate import compare, evaluate
from llmrec.evaluation.metrics import KS, row_metrics
from llmrec.recommenders import load_recommender

__all__ = [
    "CONTROLS",
    "KS",
    "compare",
    "evaluate",
    "load_recommender",
    "row_metrics",
    "shuffle_histories",
    "shuffle_order",
]
