"""Everything that recommends, behind one Protocol: our language model, and the recommenders to beat."""

from llmrec.recommenders.llm import LLMRecommender
from llmrec.recommenders.loading import check_trained_on, files_of, load_recommender
from llmrec.recommenders.protocol import Recommendation, Recommender, requests_of

__all__ = [
    "LLMRecommender",
    "Recommendation",
    "Recommender",
    "check_trained_on",
    "files_of",
    "load_recommender",
    "requests_of",
]
