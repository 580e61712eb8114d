import numpy as np
import pytest
import torch
from reference_search import EOS, exhaustive, matrix, prompts, random_semids, tiny_model

from llmrec.decoding import search_items
from llmrec.decoding.trie import SemIDTrie


def best_items(model, prompt, semids, items, allowed, normalize):
    """Every allowed item with its exact score: `(item, score, row)`, equal scores by row."""
    scores = exhaustive(model, prompt, semids, normalize)
    rows_of = {}
    for row, item in enumerate(items):
        if allowed[row]:
            rows_of.setdefault(int(item), []).append(row)
    found = []
    for item, rows in rows_of.items():
        total = np.logaddexp.reduce([scores[semids[row]] for row in rows])
        found.append((item, total, min(rows, key=lambda row: (-scores[semids[row]], row))))
    return sorted(found, key=lambda entry: (-entry[1], entry[2]))


def catalogue(seed: int):
    """SemIDs of which some are shared, and items of which some have several."""
    rng = np.random.default_rng(seed)
    semids = random_semids(seed, rows=40, ragged=True)
    semids += [semids[row] for row in rng.integers(0, len(semids), 10)]
    return semids, rng.integers(0, 35, len(semids))


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("seed", range(2))
def test_wide_beams_give_exact_items_under_filters(seed, normalize):
    model, (semids, items) = tiny_model(seed=seed), catalogue(seed)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([4, 9, 6, 5])
    rng = np.random.default_rng(seed)
    masks = [None, rng.random(len(semids)) < 0.5, np.zeros(len(semids), bool), np.ones(len(semids), bool)]
    denied = [np.empty(0, np.int64), rng.integers(0, len(semids), 9), np.array([1]), rng.integers(0, len(semids), 30)]
    k = [50, 3, 5, 50]
    found = search_items(model, ids, mask, trie, items, k, len(semids), masks, denied, normalize)
    for request in range(4):
        allowed = np.ones(len(semids), bool) if masks[request] is None else masks[request].copy()
        allowed[denied[request]] = False
        prompt = ids[request][mask[request].bool()].tolist()
        expected = best_items(model, prompt, semids, items, allowed, normalize)[: k[request]]
        assert [(entry.item, entry.row) for entry in found[request]] == [(item, row) for item, _, row in expected]
        np.testing.assert_allclose([e.score for e in found[request]], [score for _, score, _ in expected], atol=1e-4)
    assert found[2] == []
    assert len(found[0]) == len(set(items.tolist()))


def test_beams_widen_until_there_are_k_items():
    semids = [(20, token) for token in range(20, 40)] + [(21, 20), (22, 20), (23, 21)]
    items = np.array([0] * 20 + [1, 2, 3])
    model, trie = tiny_model(seed=2), SemIDTrie(matrix(semids), EOS)
    with torch.no_grad():  # make the one item with twenty SemIDs fill the narrow beams
        model.lm_head.weight.zero_()
    ids, mask = prompts([5, 5, 5])
    found = search_items(model, ids, mask, trie, items, [4, 1, 9], 1)
    assert [len(entries) for entries in found] == [4, 1, 4]
    assert {entry.item for entry in found[0]} == {0, 1, 2, 3}
    assert found[0][0].item == 0 and found[0][0].row == 0
    assert found[0][0].score - found[0][1].score == pytest.approx(np.log(20))


def test_items_at_one_leaf_are_listed_in_the_order_of_their_rows():
    semids = [(20, 21), (22, 23), (20, 21), (20, 24), (20, 21)]
    items = np.array([7, 3, 5, 1, 6])
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([5])
    found = search_items(tiny_model(), ids, mask, trie, items, [5], 5)[0]
    shared = [entry for entry in found if entry.row in (0, 2, 4)]
    assert [entry.item for entry in shared] == [7, 5, 6]
    assert len({entry.score for entry in shared}) == 1
    assert len(search_items(tiny_model(), ids, mask, trie, items, [2], 1)[0]) == 2


def test_equal_scores_are_listed_by_row():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    semids = random_semids(0, rows=20)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts([5])
    found = search_items(model, ids, mask, trie, np.arange(len(semids)), [100], 5)[0]
    assert [entry.row for entry in found] == list(range(len(semids)))


def test_a_request_does_not_depend_on_its_batch():
    model, (semids, items) = tiny_model(seed=3), catalogue(3)
    trie = SemIDTrie(matrix(semids), EOS)
    lengths, k = [3, 11, 7, 5], [2, 12, 5, 2]
    ids, mask = prompts(lengths)
    denied = [np.array([row, row + 1]) for row in range(4)]
    together = search_items(model, ids, mask, trie, items, k, 3, denied=denied)
    for row in range(4):
        alone = search_items(model, ids[[row]], mask[[row]], trie, items, [k[row]], 3, denied=[denied[row]])[0]
        assert [(entry.item, entry.row) for entry in alone] == [(e.item, e.row) for e in together[row]]
        np.testing.assert_allclose([e.score for e in alone], [e.score for e in together[row]], atol=1e-4)
        assert not {entry.row for entry in alone} & set(denied[row].tolist())


def test_bad_requests_are_named():
    trie = SemIDTrie(matrix([(20,)]))
    ids, mask = prompts([3])
    for k, beams, message in (
        ([1, 2], 5, "2 values of k for 1 prompts"),
        ([0], 5, "k is 0, it should be a whole number of at least 1"),
        ([2.5], 5, "k is 2.5"),
        ([1], 0, "num_beams is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            search_items(tiny_model(), ids, mask, trie, np.zeros(1), k, beams)
