"""Training rows of GRPO: a prompt, and the ids that rewards speak of."""

import pyarrow as pa
from datasets import Dataset

from llmrec.data import PreparedData
from llmrec.instructions.spans import Sequences, target_spans
from llmrec.recommender import LLMRecommender


def prompt_rows(data: PreparedData, recommender: LLMRecommender, following: int = 0) -> Dataset:
    """One row per training target that has a history, in the order of the sequences.

    Args:
        recommender: gives the prompt, exactly as it will be asked.
        following (`int`): how many items after the target a row names.

    Returns:
        `prompt` (str), `history` (list of str), `target` (str), `following` (list of str), `row` (int).
    """
    spans = target_spans(data.train, recommender.config.max_history)
    spans = spans.filter(pa.array(spans["middle"].to_numpy() > spans["start"].to_numpy()))
    rows = Sequences(data.train).rows(spans)
    histories = [row["history"] for row in rows]
    return Dataset.from_dict(
        {
            "prompt": recommender.prompts(histories),
            "history": histories,
            "target": [row["targets"][0] for row in rows],
            "row": list(range(len(rows))),
        }
    )
