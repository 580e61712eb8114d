"""Ranking metrics while training, shared by processes."""

from types import SimpleNamespace

import pytest
from tiny import tiny_data, tiny_index, tiny_model

from llmrec.instructions import load_prompt
from llmrec.model_folder import RecommenderConfig
from llmrec.recommender import LLMRecommender
from llmrec.training import ValidationSample


def test_more_processes_than_rows():
    """A process without rows adds nothing; all of them together give what one alone gives."""
    data = tiny_data()
    index = tiny_index(data)
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=24)
    sample = ValidationSample(LLMRecommender(model, tokenizer, index, data.items, config), data.valid, size=2)

    def evaluate(processes: int) -> list[dict[str, float]]:
        return [
            sample.evaluate(
                model,
                SimpleNamespace(
                    process_index=process, num_processes=processes, device="cpu", reduce=lambda sums, _: sums
                ),
            )
            for process in range(processes)
        ]

    (alone,), shared = evaluate(1), evaluate(3)
    assert alone["recall@50"] == 1 and set(shared[2].values()) == {0.0}
    for name, value in alone.items():
        assert sum(part[name] for part in shared) == pytest.approx(value)
