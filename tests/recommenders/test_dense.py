"""Dense retrieval beside the beams: scores and lists are those of brute force, and nothing changes where it is off."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from decoding.dense_heads import random_head
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.lifecycle import remove_items
from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import search as search_module
from llmrec.decoding.dense import MODES, prompt_states
from llmrec.decoding.logits_processor import generate_search
from llmrec.item_tokenizers import RQKMeans, add_items, fit_semids
from llmrec.models.folder import CHECKSUMS, CONFIG, DENSE, RecommenderConfig, write_sidecars
from llmrec.models.update import add_dense, update_model_folder
from llmrec.recommenders import LLMRecommender

COLD = ["item-03", "item-11", "item-20"]
HISTORIES = [["item-01", "item-02"], ["item-09"], [], ["item-05", "item-06", "item-07", "item-08"]]


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """Two items share a Semantic ID, one has two."""
    codes = tiny_index(data).codes
    codes[13] = codes[12]
    ids = data.items["item_id"].to_pylist()
    index = SemIDIndex([*ids, "item-04"], np.concatenate([codes, [[5, 5, 3]]]), [6, 6, 4])
    folder = write_tiny_base(tmp_path_factory.mktemp("dense") / "model", data, index, initializer_range=0.05)
    return folder


@pytest.fixture(scope="module")
def recommender(folder, data):
    recommender = LLMRecommender.from_pretrained(folder)
    recommender.dense = random_head(data, 64, COLD)
    recommender.has_dense = True
    return recommender


def states_one_by_one(recommender, histories) -> torch.Tensor:
    """What the head receives, from the model's own hidden states, one prompt at a time and without padding."""
    states = []
    for ids in recommender.token_ids(recommender.prompts(histories)):
        with torch.no_grad():
            hidden = recommender.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        states.append(hidden[0, -1])
    return torch.stack(states)


def brute_force(recommender, mode, histories, num_beams, allowed) -> list[list[tuple[str, float]]]:
    """Every item's score, in float64: the lists that `mode` should give among `allowed` items, in full."""
    head, ids = recommender.dense, recommender.item_ids
    weight, vectors = head.weight, head.vectors.astype(np.float64)
    norm, out = head.head.norm, head.head.out
    plain = recommender.recommend(histories, num_beams, Filter(allow=allowed), num_beams=num_beams, dense="")
    lists = []
    for state, beams in zip(states_one_by_one(recommender, histories).numpy().astype(np.float64), plain):
        x = (state - state.mean()) / np.sqrt(state.var() + norm.eps)
        x = x * norm.weight.numpy() + norm.bias.numpy()
        x = out.weight.numpy() @ x + out.bias.numpy()
        cosines = vectors @ x / np.linalg.norm(x)
        dense = np.exp(cosines / head.settings["temperature"])
        dense /= dense.sum()
        generated = {item.item_id: math.exp(item.score) for item in beams}
        scores = {}
        for item, q in zip(ids, dense):
            if mode == "alone":
                scores[item] = q
            elif item in generated or (mode == "cold" and item in COLD):
                scores[item] = (1 - weight) * generated.get(item, 0) + weight * q
        scores = {item: math.log(p) for item, p in scores.items() if item in allowed}
        lists.append(sorted(scores.items(), key=lambda pair: -pair[1]))
    return lists


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_lists_and_scores_are_those_of_brute_force(recommender, mode, weight):
    recommender.dense.settings["weight"] = weight
    everything = recommender.item_ids
    some = [item for number, item in enumerate(everything) if number % 3 != 1]
    for allowed in (everything, some):
        expected = brute_force(recommender, mode, HISTORIES, 6, allowed)
        given = None if allowed is everything else Filter(allow=allowed)
        for k in (3, 6):
            found = recommender.recommend(HISTORIES, k, given, num_beams=6, dense=mode)
            assert [[item.item_id for item in one] for one in found] == [[i for i, _ in one[:k]] for one in expected]
            for one, other in zip(found, expected):
                np.testing.assert_allclose([item.score for item in one], [s for _, s in other[:k]], atol=2e-5)
    recommender.dense.settings["weight"] = 0.5


def test_off_by_default(recommender, folder):
    assert recommender.config.dense == ""
    plain = LLMRecommender.from_pretrained(folder)
    assert recommender.recommend(HISTORIES, 8) == plain.recommend(HISTORIES, 8)
    with pytest.raises(ValueError, match="no dense head: run recipes/fit_dense.py"):
        plain.recommend(HISTORIES, dense="cold")
    with pytest.raises(ValueError, match="dense 'could' is not one of .*did you mean 'cold'"):
        recommender.recommend(HISTORIES, dense="could")


def test_states_of_padded_prompts_and_of_the_search_are_those_of_single_ones(recommender):
    expected = states_one_by_one(recommender, HISTORIES)
    prompts = recommender.token_ids(recommender.prompts(HISTORIES))
    [(order, ids, mask)] = search_module.prompt_batches(prompts, 10, recommender.device)
    torch.testing.assert_close(prompt_states(recommender.model, ids, mask), expected[order], atol=1e-5, rtol=1e-5)
    search = search_module.open_search(recommender.model, ids, mask, recommender.trie, "vocabulary")
    torch.testing.assert_close(search.states, expected[order], atol=1e-5, rtol=1e-5)
    assert prompt_states(recommender.model, ids, mask, search) is search.states


def test_a_model_that_only_generate_can_search(recommender, monkeypatch):
    """Such a search has no states: the prompts run once more."""
    expected = recommender.recommend(HISTORIES, 5, num_beams=6, dense="cold")
    monkeypatch.setattr(
        "llmrec.recommenders.llm.open_search", lambda model, *given: generate_search(model, *given[:-1])
    )
    found = recommender.recommend(HISTORIES, 5, num_beams=6, dense="cold")
    assert [[item.item_id for item in one] for one in found] == [[item.item_id for item in one] for one in expected]


@pytest.mark.parametrize("mode", MODES)
def test_filters_limits_and_ks(recommender, mode):
    history = [["item-01", "item-03"]]
    unseen = recommender.recommend(history, 30, Filter(exclude_seen=True), dense=mode)[0]
    everything = recommender.recommend(history, 30, dense=mode)[0]
    kept = [item for item in everything if item.item_id not in history[0]]
    assert [item.item_id for item in kept] == [item.item_id for item in unseen] and len(everything) == 24
    assert [item.score for item in kept] == pytest.approx([item.score for item in unseen], abs=1e-9)
    limited = recommender.recommend(history, 30, Filter(at_most={"brand": 1}), dense=mode)[0]
    first = {}
    for item in everything:
        first.setdefault(int(item.item_id[-2:]) % 4, item)
    if mode == "alone":  # beams pass over what is beyond a limit before the lists are fused
        assert limited == list(first.values())
    assert len(limited) == 4 and len({int(item.item_id[-2:]) % 4 for item in limited}) == 4
    assert recommender.recommend(history, 3, Filter(where=[("price", ">", 1000)]), dense=mode) == [[]]
    short = recommender.recommend(HISTORIES, [1, 4, 2, 3], num_beams=6, dense=mode)
    assert [len(one) for one in short] == [1, 4, 2, 3]


def test_cold_items_join_few_beams(recommender):
    recommender.dense.settings["weight"] = 1.0
    found = recommender.recommend(HISTORIES, 20, num_beams=20, dense="cold")
    ranked = recommender.recommend(HISTORIES, 4, num_beams=4, dense="rank")
    joined = recommender.recommend(HISTORIES, 4, num_beams=4, dense="cold")
    recommender.dense.settings["weight"] = 0.5
    assert all({*COLD} <= {item.item_id for item in one} for one in found)
    assert {item.item_id for one in joined for item in one} - {item.item_id for one in ranked for item in one} <= {
        *COLD
    }


def test_folder_save_and_load(recommender, folder, data, tmp_path):
    add_dense(folder, recommender.dense, "cold", tmp_path / "cold", hard_links=True)
    loaded = LLMRecommender.from_pretrained(tmp_path / "cold")
    assert loaded.config.dense == "cold" and not (folder / DENSE).exists()
    expected = recommender.recommend(HISTORIES, 8, dense="cold")
    assert loaded.recommend(HISTORIES, 8) == expected
    assert loaded.recommend(HISTORIES, 8, dense="") == recommender.recommend(HISTORIES, 8)
    loaded.save_pretrained(tmp_path / "again")
    again = LLMRecommender.from_pretrained(tmp_path / "again")
    assert again.recommend(HISTORIES, 8) == expected
    with pytest.raises(ValueError, match="exists"):
        add_dense(folder, recommender.dense, "cold", tmp_path / "cold")
    with pytest.raises(ValueError, match="mode 'bold' is not one of rank, cold, alone"):
        add_dense(folder, recommender.dense, "bold", tmp_path / "bold")
    other = random_head(tiny_data(num_items=23), 64)
    with pytest.raises(ValueError, match="made for other items"):
        add_dense(folder, other, "cold", tmp_path / "other")
    other.save_pretrained(tmp_path / "again" / DENSE)
    (tmp_path / "again" / CHECKSUMS).unlink()
    with pytest.raises(ValueError, match="dense was made for other items"):
        LLMRecommender.from_pretrained(tmp_path / "again")


def test_what_is_trained_further_loses_the_head(recommender, folder, data, tmp_path, caplog):
    """Weights that moved have other states: a folder without a head does not ask for one."""
    config = RecommenderConfig.load(folder)
    config.dense = "cold"
    base = write_tiny_base(tmp_path / "next", data, tiny_index(data))
    write_sidecars(base, config, recommender.index, data.items.take(pa.array([*range(24), 4])))
    assert "dense is off: run recipes/fit_dense.py" in caplog.text
    assert RecommenderConfig.load(base).dense == "" and config.dense == "cold"
    (base / CONFIG).write_text((base / CONFIG).read_text().replace('"dense": ""', '"dense": "most"'))
    with pytest.raises(ValueError, match="dense 'most' is not one of"):
        RecommenderConfig.load(base)


def test_newcomers_get_embeddings_from_their_columns(data, tmp_path):
    """A newcomer that reads as an old item gets the embedding that the old item would have without its own vector."""
    head = random_head(data, 64, COLD)
    matrix = head.features.encode(data.items)
    tokenizer = RQKMeans([4, 4], niter=5)
    index = fit_semids(tokenizer, matrix, data.items, data.train, collision="append")
    folder = write_tiny_base(tmp_path / "model", data, index, initializer_range=0.05)
    add_dense(folder, head, "cold", tmp_path / "dense")
    new = data.items.slice(7, 1).set_column(0, "item_id", pa.array(["new"]))
    items = pa.concat_tables([data.items.slice(1), new])
    later = add_items(remove_items(index, ["item-00"]), tokenizer, head.features.encode(new), ["new"], new)
    update_model_folder(tmp_path / "dense", later, items, tmp_path / "two", hard_links=True)
    recommender = LLMRecommender.from_pretrained(tmp_path / "two")
    dense = recommender.dense
    place = {item: number for number, item in enumerate(dense.item_ids)}
    assert "item-00" not in place and dense.cold[place["new"]] and not dense.cold[place["item-07"]]
    expected = matrix[7] @ head.project
    np.testing.assert_allclose(dense.vectors[place["new"]], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_array_equal(dense.vectors[place["item-07"]], head.vectors[7])
    found = {item.item_id for item in recommender.recommend(HISTORIES[:1], 24, num_beams=1)[0]}
    assert {"new", *COLD} <= found
    before = LLMRecommender.from_pretrained(tmp_path / "dense")
    assert before.dense.item_ids == head.item_ids  # the old folder stays as it was
