"""Ranking metrics while training, shared by processes."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import tiny_data, tiny_index, tiny_model

from llmrec.catalogue.semids import SemIDIndex
from llmrec.evaluation import evaluate
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender
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
    for name in (name for name in alone if not name.startswith("coverage")):
        assert sum(part[name] for part in shared) == pytest.approx(alone[name])


def test_what_the_lists_show():
    """valid, coverage and head follow from the lists themselves."""
    data = tiny_data()
    index = tiny_index(data)
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=24)
    recommender = LLMRecommender(model, tokenizer, index, data.items, config)
    sample = ValidationSample(recommender, data.valid, size=5, train=data.train)
    alone = SimpleNamespace(process_index=0, num_processes=1, device="cpu", reduce=lambda sums, _: sums)
    found = sample.evaluate(model, alone)
    lists = [[item.item_id for item in items] for items in recommender.recommend(sample.rows["history"].to_pylist())]
    counts = Counter(item for items in data.train["item_ids"].to_pylist() for item in items)
    head = {
        item for item, count in counts.items() if count >= np.quantile(list(counts.values()), 0.9, method="higher")
    }
    shown = [item for items in lists for item in items]
    assert found["valid@10"] == 1
    assert found["coverage@10"] == len(set(shown)) / data.items.num_rows
    assert found["head@10"] == pytest.approx(sum(item in head for item in shown) / len(shown))
    assert 0 < len(head) < data.items.num_rows


def test_ranking_shows_how_far_it_is(capfd):
    data = tiny_data()
    model, tokenizer = tiny_model(data, tiny_index(data))
    config = RecommenderConfig.of(data, tiny_index(data), prompt=load_prompt("stream").to_dict(), num_beams=4)
    recommender = LLMRecommender(model, tokenizer, tiny_index(data), data.items, config, batch_size=2)
    sample = ValidationSample(recommender, data.valid, size=20)
    shown = []
    for process, progress in ((0, True), (0, False), (1, True)):
        alone = SimpleNamespace(process_index=process, num_processes=2, device="cpu", reduce=lambda sums, _: sums)
        sample.evaluate(model, alone, progress=progress)
        shown.append(capfd.readouterr().err)
    assert "ranking" in shown[0] and "0/10" in shown[0] and "row/s" in shown[0] and not any(shown[1:])


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_sample_is_ranked_as_the_report_ranks_it(exclude_seen):
    """Where items share Semantic IDs, too: a checkpoint is chosen by the figure that will be reported."""
    data = tiny_data()
    number = np.arange(24)
    index = SemIDIndex(data.items["item_id"].to_pylist(), np.stack([number % 3, number // 3 % 4], 1), [3, 4])
    assert len(np.unique(index.groups())) == 12
    model, tokenizer = tiny_model(data, index, initializer_range=0.2)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=24)
    recommender = LLMRecommender(model, tokenizer, index, data.items, config)
    sample = ValidationSample(recommender, data.valid, 30, ks=(1, 10), exclude_seen=exclude_seen)
    alone = SimpleNamespace(process_index=0, num_processes=1, device="cpu", reduce=lambda sums, _: sums)
    found = sample.evaluate(model, alone)
    report = evaluate(recommender, sample.rows, data, "ours", (1, 10), bootstrap=0, exclude_seen=exclude_seen)
    for name in ("recall@1", "recall@10", "ndcg@10", "valid@10", "coverage@10"):
        assert found[name] == pytest.approx(report.metrics[name]), name
    assert report.metrics["semid/ndcg@10"] > report.metrics["ndcg@10"]


def test_of_no_rows_nothing_is_measured():
    data = tiny_data()
    model, tokenizer = tiny_model(data, tiny_index(data))
    config = RecommenderConfig.of(data, tiny_index(data), prompt=load_prompt("stream").to_dict())
    recommender = LLMRecommender(model, tokenizer, tiny_index(data), data.items, config)
    data.valid = data.valid.slice(0, 0)
    assert ValidationSample.of(recommender, data, 10).evaluate(model, None) == {}
