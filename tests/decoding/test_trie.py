import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_search import EOS, matrix, next_tokens
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import trie as trie_module
from llmrec.decoding.trie import DEAD, END, RowFilter, SemIDTrie

catalogues = st.lists(st.lists(st.integers(10, 16), min_size=1, max_size=4).map(tuple), min_size=1, max_size=30)
quick = settings(deadline=None, max_examples=25)


def walk(trie: SemIDTrie, tokens) -> torch.Tensor:
    node = torch.tensor([0])
    for level, token in enumerate(tokens):
        node = trie.step(node, torch.tensor([token]), level)
    return node


@quick
@given(catalogues)
def test_children_of_every_prefix_equal_brute_force(semids):
    trie, catalogue = SemIDTrie(matrix(semids), EOS), set(semids)
    for prefix in {semid[:length] for semid in semids for length in range(len(semid) + 1)}:
        if len(prefix) == trie.depth:
            continue
        node = walk(trie, prefix)
        children = trie.children(node, len(prefix))
        valid = children.valid[0]
        tokens = trie.vocab[len(prefix)][children.column[0]][valid].tolist()
        assert tokens == next_tokens(prefix, catalogue)
        assert trie.token(children.node[0][valid], len(prefix)).tolist() == tokens
        expected = [EOS if token == END else token for token in tokens]
        assert trie.head_ids[len(prefix)][children.column[0]][valid].tolist() == expected
        assert trie.complete(node, len(prefix)).tolist() == [tokens == [END]]
        tried = torch.arange(8, 18)
        stepped = trie.step(node.expand(10), tried, len(prefix)).tolist()
        child = dict(zip(tokens, children.node[0][valid].tolist()))
        assert stepped == [child.get(token, DEAD) for token in tried.tolist()]
        assert valid.sum() <= trie.max_branch[len(prefix)]


@quick
@given(catalogues)
def test_every_semid_leads_to_its_rows_in_their_order(semids):
    trie = SemIDTrie(matrix(semids), EOS)
    for semid in semids:
        for end in (END, EOS):
            node = walk(trie, [*semid, *[end] * (trie.depth - len(semid))])
            low, high = trie.rows(node, trie.depth)
            rows = trie.order[int(low) : int(high)].tolist()
            assert rows == [row for row, other in enumerate(semids) if other == semid]
    assert trie.num_leaves == len(set(semids))
    assert trie.host_order[trie.position].tolist() == list(range(len(semids)))


@quick
@given(catalogues, st.integers(0, 2**32 - 1))
def test_counts_equal_brute_force(semids, seed):
    rng = np.random.default_rng(seed)
    trie = SemIDTrie(matrix(semids), EOS)
    shared = rng.random(len(semids)) < 0.5
    masks = [None, shared, shared, rng.random(len(semids)) < 0.2]
    denied = [rng.integers(0, len(semids), rng.integers(0, 5)) for _ in masks]
    rows = RowFilter(trie, masks, denied)
    for level in range(trie.depth + 1):
        nodes = torch.arange(len(trie._start[level]) - 1).expand(len(masks), -1)
        low, high = trie.rows(nodes, level)
        counts = rows.count(low, high)
        for request, (mask, deny) in enumerate(zip(masks, denied)):
            allowed = np.ones(len(semids), bool) if mask is None else mask.copy()
            allowed[deny] = False
            expected = [allowed[trie.order[a:b].numpy()].sum() for a, b in zip(low[0].tolist(), high[0].tolist())]
            assert counts[request].tolist() == expected
            np.testing.assert_array_equal(rows.keep(request, np.arange(len(semids))), allowed)
    picked = rows.select([3, 1])
    low, high = trie.rows(torch.zeros(2, 1, dtype=torch.long), 0)
    assert picked.count(low, high).tolist() == rows.count(low[[0, 0, 0, 0]], high[[0, 0, 0, 0]])[[3, 1]].tolist()


@quick
@given(catalogues)
def test_dead_nodes_stay_dead(semids):
    trie = SemIDTrie(matrix(semids), EOS)
    dead = torch.tensor([DEAD])
    for level in range(trie.depth):
        assert not trie.children(dead, level).valid.any()
        assert trie.step(dead, torch.tensor([10]), level).tolist() == [DEAD]
        assert not trie.complete(dead, level).any()
        low, high = trie.rows(dead, level)
        assert (low == high).all()
        assert trie.token(dead, level).tolist() == [END]


def test_sorting_gives_one_order_however_columns_are_packed():
    rng = np.random.default_rng(0)
    for levels, width in ((2, 4), (3, 2**16), (5, 2**14), (9, 3), (8, 2**20)):
        columns = [rng.integers(0, min(width, 5), 500).astype(np.int32) for _ in range(levels)]
        expected = sorted(range(500), key=lambda row: ([int(column[row]) for column in columns], row))  # noqa: B023
        assert trie_module._argsort_rows(columns, [width] * levels).tolist() == expected


def test_mask_sums_are_kept_while_the_mask_lives_and_checked():
    trie = SemIDTrie(matrix([(10, 11), (10, 12), (13, 11)]))
    mask = np.array([True, False, True])
    assert trie.cumsum(mask) is trie.cumsum(mask)
    assert trie.cumsum(mask).tolist() == [0, 1, 1, 2]
    with pytest.raises(ValueError, match=r"a mask must be bool \[3\]"):
        trie.cumsum(np.ones(2, bool))


def tokenizer_for(tokens: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(["<unk>", "</s>", *tokens])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="</s>",
    )


def test_from_index_maps_codes_to_the_tokenizers_ids():
    codes = np.array([[1, 0, -1], [1, 2, 0], [0, 2, 1]], np.int32)
    index = SemIDIndex(["x", "y", "z"], codes, [2, 3, 2])
    tokenizer = tokenizer_for(index.tokens[::-1])
    trie = SemIDTrie.from_index(index, tokenizer)
    assert trie.eos_token_id == 1
    for row in range(3):
        ids = tokenizer.convert_tokens_to_ids([index.token(level, code) for level, code in enumerate(codes[row])][:2])
        low, high = trie.rows(walk(trie, ids), 2)
        assert trie.order[int(low) : int(high)].tolist() == [row]
    with pytest.raises(ValueError, match="<c_1>"):
        SemIDTrie.from_index(index, tokenizer_for(index.tokens[:-1]))


@pytest.mark.parametrize(
    "rows, eos, message",
    [
        ([[-1, 10]], EOS, "empty SemID"),
        ([[10, -1, 11]], EOS, "row 0 .* gap"),
        ([[10, -1], [10, 11]], None, "prefix of another"),
        ([[10, -1], [10, EOS]], EOS, "EOS token 1 is also a SemID token"),
        ([[2**31, 3]], EOS, "token_ids must lie"),
        (np.empty((0, 3), int), EOS, "at least one SemID"),
    ],
)
def test_bad_input_is_named(rows, eos, message):
    with pytest.raises(ValueError, match=message):
        SemIDTrie(np.asarray(rows), eos)


def test_ends_need_no_eos_where_no_semid_is_a_prefix():
    trie = SemIDTrie(matrix([(10,), (11, 12)]))
    assert trie.has_end == [False, True]
    assert trie.complete(walk(trie, [10]), 1).tolist() == [True]


def test_arrays_are_small():
    rng = np.random.default_rng(0)
    trie = SemIDTrie(rng.integers(0, 256, (20_000, 3)))
    assert trie.nbytes <= 40 * trie.num_rows


def test_a_trie_moves_with_all_its_tensors():
    trie = SemIDTrie(matrix([(10, 11), (12,)]), EOS)
    trie.cumsum(np.array([True, False]))
    assert trie.to("cpu") is trie
    assert trie.to("meta") is trie
    tensors = [value for value in vars(trie).values() if isinstance(value, torch.Tensor)]
    tensors += [tensor for value in vars(trie).values() if isinstance(value, list) for tensor in value]
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)} == {"meta"}


def test_a_trie_moves_with_everything_but_its_host_order():
    trie = SemIDTrie(np.array([[5, 6], [5, 7], [4, 6]]))
    mask = np.array([True, False, True])
    sums = trie.cumsum(mask)
    assert trie.to("cpu") is trie and trie.cumsum(mask) is sums  # nothing moved, so nothing is forgotten
    assert trie.host_order.tolist() == trie.order.tolist() == [2, 0, 1] and trie.last_token == 7
    trie.to(torch.device("meta"))
    tensors = [value for value in vars(trie).values() if isinstance(value, torch.Tensor)]
    lists = [value for value in vars(trie).values() if isinstance(value, list) and isinstance(value[0], torch.Tensor)]
    assert {tensor.device.type for tensor in [*tensors, *sum(lists, [])]} == {"meta"} == {trie.device.type}
    assert not trie._cumsums and trie.host_order.tolist() == [2, 0, 1]
