"""RPG: that it learns, what its graph promises, which Semantic IDs it refuses, and that a folder brings it back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from protocol_checks import FILTERS
from tiny import tiny_data, tiny_index

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.evaluation import evaluate
from llmrec.item_tokenizers import PQ, RandomIDs, SequentialIDs, fit_semids
from llmrec.recommenders import load_recommender
from llmrec.recommenders.networks import decoding_graph as graphs
from llmrec.recommenders.networks.rpg import RPGConfig, RPGNetwork, digits_of
from llmrec.recommenders.rpg import RPG

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2, "max_length": 8, "dropout": 0.1}
TRAINING = {"learning_rate": 3e-3, "batch_size": 8, "max_epochs": 60, "patience": 30}
HISTORIES = [["item-03", "item-04"], [], ["item-10"] * 3, ["item-23"], ["item-07", "item-08", "item-09"]]


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def long_ids(data, digits: int = 16, size: int = 8, **naming) -> SemIDIndex:
    features = np.random.default_rng(0).standard_normal((data.items.num_rows, digits), np.float32)
    tokenizer = PQ(digits=digits, codebook_size=size, preprocess="none")
    return fit_semids(tokenizer, features, data.items, data.train, **naming)


@pytest.fixture(scope="module")
def rpg(data, tmp_path_factory):
    semids = tmp_path_factory.mktemp("rpg") / "semids.parquet"
    long_ids(data).save(semids, data.items)
    return RPG.fit(data, RPGConfig(semids=str(semids), **TRAINING, **SMALL), "cpu")


def along_graph(rpg: RPG, **settings) -> RPG:
    return RPG(rpg.model, rpg.items, rpg.popularity, replace(rpg.config, search="graph", **settings))


def ids_of(lists) -> list[list[str]]:
    return [[item.item_id for item in one] for one in lists]


def test_it_learns_the_walk(rpg, data):
    assert evaluate(rpg, data.test, data, "rpg", bootstrap=0).metrics["recall@1"] >= 0.9


def test_a_score_is_the_mean_log_probability_of_the_digits(rpg):
    hidden = torch.randn(3, 32)
    logits, codes = rpg.model.logits(hidden), rpg.model.codes % rpg.model.codebook_size
    assert logits.shape == (16, 3, 8) and logits.abs().max() <= 1 / 0.03 + 1e-3
    expected = torch.zeros(3, 24)
    for digit in range(16):
        expected += logits[digit].log_softmax(-1)[:, codes[:, digit].long()] / 16
    torch.testing.assert_close(rpg.model.head(hidden), expected)
    items = torch.tensor([5, 0, 23])
    torch.testing.assert_close(rpg.model.loss(hidden, items), -expected[torch.arange(3), items].mean())


def test_heads_begin_as_the_state_itself(data):
    network = RPGNetwork(*digits_of(long_ids(data), data.items), RPGConfig(**SMALL))
    hidden = torch.randn(2, 32)
    unit = torch.nn.functional.normalize(network.digit_vectors(), dim=-1)
    cosines = torch.einsum("ph,mkh->mpk", torch.nn.functional.normalize(hidden, dim=-1), unit)
    torch.testing.assert_close(network.logits(hidden), cosines / 0.03)


def test_it_is_causal_and_blind_to_padding(rpg):
    with torch.no_grad():
        first, second = (rpg.model(torch.tensor([[1, 2, 3, *end]])) for end in ([4, 5], [9, 9]))
    torch.testing.assert_close(first[:, :3], second[:, :3])


def test_a_complete_graph_gives_the_exhaustive_lists(rpg):
    complete = along_graph(rpg, edges=23, beam=1, rounds=1)
    requests = [None, Filter(at_most={"brand": 1}), Filter(exclude_seen=True), Filter(where=[("price", "<", 4)]), None]
    for k in (1, 5, 24):
        ours, theirs = (each.recommend(HISTORIES, k, requests) for each in (complete, rpg))
        assert ids_of(ours) == ids_of(theirs)
        for one, other in zip(ours, theirs):
            assert [item.score for item in one] == pytest.approx([item.score for item in other], abs=1e-5)


def test_a_sparse_graph_visits_few_and_returns_exact_scores(rpg):
    sparse = along_graph(rpg, edges=3, beam=2, rounds=2)
    tables = sparse._tables(np.array([3, 4, 10], np.int32), np.array([0, 2, 3]))
    visited = graphs.walk(tables, sparse.model.codes, sparse.graph, sparse._starts(), 2, 2)
    everything = graphs.item_scores(tables, sparse.model.codes)
    for number, (rows, scores) in enumerate(visited):
        assert 2 < len(rows) <= 2 * (1 + 2 * 3) and (np.diff(rows) > 0).all()
        np.testing.assert_allclose(scores, everything[number, rows], atol=1e-5)
    # Fewer were visited than are wanted, or than a filter leaves: the whole catalogue is ranked.
    filters = [None, None, None, Filter(allow=["item-01", "item-20"]), Filter(deny=["item-10"])]
    assert ids_of(sparse.recommend(HISTORIES, 24, filters)) == ids_of(rpg.recommend(HISTORIES, 24, filters))
    singles = [sparse.recommend([history], 3)[0] for history in HISTORIES]
    assert ids_of(sparse.recommend(HISTORIES, 3)) == ids_of(singles)


def test_the_walk_is_that_of_the_paper(rpg):
    """Against plain Python: sets of visited items, the best of them expanded in every round."""
    codes = torch.from_numpy(digits_of(long_ids(tiny_data(200, 5), 8), tiny_data(200, 5).items)[0])
    codes = codes + torch.arange(8, dtype=torch.int32) * 8
    torch.manual_seed(1)
    tables = torch.randn(3, 64)
    graph = graphs.decoding_graph(graphs.digit_similarity(torch.randn(8, 8, 16)), codes, edges=4)
    starts, scores = torch.tensor([7, 100, 3]), graphs.item_scores(tables, codes)
    for number, (rows, _) in enumerate(graphs.walk(tables, codes, graph, starts, beam=3, rounds=3)):
        visited = set(starts.tolist())
        for _ in range(3):
            best = sorted(visited, key=lambda row, number=number: -scores[number, row])[:3]
            visited |= {row for one in best for row in graph[one].tolist()}
        assert sorted(visited) == rows.tolist()


def test_neighbours_are_the_most_similar_items(monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 8, (20, 8))
    rows = np.where(rng.random((600, 8)) < 0.3, rng.integers(0, 8, (600, 8)), centres[rng.integers(0, 20, 600)])
    codes = torch.from_numpy((rows + np.arange(8) * 8).astype(np.int32))
    similarity = graphs.digit_similarity(vectors := torch.randn(8, 8, 16))
    unit = torch.nn.functional.normalize(vectors.flatten(0, 1), dim=-1)
    by_hand = ((unit[codes.long()].flatten(1) @ unit[codes.long()].flatten(1).T) / 8 + 1) / 2
    by_hand.fill_diagonal_(-1)
    exact = graphs.decoding_graph(similarity, codes, edges=10)
    found = by_hand.gather(1, exact.long())
    torch.testing.assert_close(found, by_hand.topk(10).values)
    monkeypatch.setattr(graphs, "ONE_CELL", 100)
    monkeypatch.setattr(graphs, "CELL", 20)
    monkeypatch.setattr(graphs, "NEAR", 6)
    in_cells = graphs.decoding_graph(similarity, codes, edges=10)
    assert all(len(set(row)) == 10 and number not in row for number, row in enumerate(in_cells.tolist()))
    kept = np.mean([len({*one} & {*other}) / 10 for one, other in zip(exact.tolist(), in_cells.tolist())])
    assert kept > 0.7
    assert graphs.decoding_graph(similarity, codes, edges=5000).shape == (600, 599)


@pytest.mark.parametrize("search", ["exhaustive", "graph"])
def test_filters_and_folder(search, rpg, tmp_path):
    recommender = along_graph(rpg, edges=5, beam=3, rounds=2) if search == "graph" else rpg
    filters = [*FILTERS, Filter(at_most={"brand": 1})]
    lists = recommender.recommend(HISTORIES, k=[100, 3, 24, 5, 4], filters=filters)
    ids = ids_of(lists)
    assert [len(one) for one in ids] == [22, 3, 23, 1, 4]
    assert not {"item-03", "item-04"} & set(ids[0]) and sorted(ids[1])[-1] <= "item-03" and "item-11" not in ids[2]
    recommender.save_pretrained(tmp_path / "rpg", {"data_fingerprint": "0"})
    again = load_recommender(tmp_path / "rpg", "cpu")
    assert again.config == recommender.config
    assert again.recommend(HISTORIES, k=[100, 3, 24, 5, 4], filters=filters) == lists


def test_what_is_no_long_unordered_id_is_refused_by_name(data, tmp_path):
    with pytest.raises(ValueError, match="sequential have an order.*opq or pq"):
        digits_of(fit_semids(SequentialIDs(), np.ones((24, 1), np.float32), data.items, data.train), data.items)
    with pytest.raises(ValueError, match="unknown item tokenizer have an order"):
        digits_of(tiny_index(data), data.items)
    contextual = long_ids(data)
    contextual.info["item_tokenizer"] = {"name": "pctx"}
    with pytest.raises(ValueError, match="Semantic IDs of pctx depend on the history"):
        digits_of(contextual, data.items)
    with pytest.raises(ValueError, match="have 4 digits, too few for RPG"):
        digits_of(long_ids(data, 4), data.items)
    one = np.ones((24, 1), np.float32)
    further = fit_semids(RandomIDs([2] * 8), one, data.items, data.train, collision="append_all")
    with pytest.raises(ValueError, match="24 of 24 items have a further token.*too few digits.*take more"):
        digits_of(further, data.items)
    shared = fit_semids(RandomIDs([2] * 8), one, data.items, data.train, collision="keep")
    with pytest.raises(ValueError, match="3 of 24 items have the digits of another.*reassign_last"):
        digits_of(shared, data.items)
    with pytest.raises(ValueError, match="codebooks of different sizes"):
        digits_of(fit_semids(RandomIDs([9, 9, 9, 9, 9, 9, 9, 8]), one, data.items, data.train), data.items)
    crowded = long_ids(data, size=2)
    crowded.info["collisions_before"]["colliding_items"] = 0.25
    with pytest.raises(ValueError, match="25% of the items collided.*too few digits for this catalogue"):
        digits_of(crowded, data.items)
    with pytest.raises(ValueError, match="item 'item-100' of the catalogue has no Semantic ID"):
        digits_of(long_ids(tiny_data(100)), tiny_data(101).items)
    with pytest.raises(ValueError, match="kind 'rpg': semids is empty"):
        RPG.fit(data, RPGConfig())
    with pytest.raises(ValueError, match="search 'grpah' is not one of exhaustive, graph: did you mean 'graph'"):
        RPGConfig(search="grpah")
    with pytest.raises(ValueError, match="hidden_size 30 is not a multiple of num_heads 4"):
        RPGConfig(hidden_size=30)
