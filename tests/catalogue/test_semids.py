import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_data, tiny_index

from llmrec.catalogue.semids import SemIDIndex


def test_decode_of_encode_is_every_item():
    index = tiny_index(tiny_data())
    assert all(index.decode(index.encode(item)) == [item] for item in index.items)
    assert index.decode("<a_0>") == [] and index.decode("nonsense") == []


def test_save_and_load_keep_everything_and_carry_item_columns(tmp_path):
    data = tiny_data()
    index = tiny_index(data)
    index.save(tmp_path / "semids.parquet", data.items)
    again = SemIDIndex.load(tmp_path / "semids.parquet")
    assert again.fingerprint == index.fingerprint and again.items == index.items
    assert (again.codes == index.codes).all() and again.tokens == index.tokens


@given(st.permutations(range(6)), st.integers(0, 5))
def test_fingerprint_sees_every_assignment(order, moved):
    codes = np.array(order)[:, None]
    index = SemIDIndex([str(i) for i in range(6)], codes, [7])
    changed = codes.copy()
    changed[moved] = 6
    assert index.fingerprint == SemIDIndex([str(i) for i in range(6)], codes, [7]).fingerprint
    assert index.fingerprint != SemIDIndex([str(i) for i in range(6)], changed, [7]).fingerprint


def test_several_items_may_share_a_semid_and_an_item_may_have_several():
    index = SemIDIndex(["x", "y", "x"], np.array([[0, 1], [0, 1], [2, 2]]), [3, 3])
    assert index.decode("<a_0><b_1>") == ["x", "y"]
    assert index.encode("x") == "<a_0><b_1>" and index.items == ["x", "y"]
    assert index.groups()[0] == index.groups()[1] != index.groups()[2]


@pytest.mark.parametrize(
    "pattern, token", [("openonerec", "<s_b_2>"), ("eugeneyan", "<|sid_5|>"), ("default", "<b_2>")]
)
def test_patterns(pattern, token):
    index = SemIDIndex(["x"], np.array([[0, 2]]), [3, 3], pattern)
    assert index.token(1, 2) == token
    assert index.decode(index.encode("x")) == ["x"]


def test_index_json_of_minionerec_reads_ragged_ids(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"0": ["<a_1>", "<b_2>", "<c_3>"], "1": ["<a_1>", "<b_2>", "<c_3>", "<d_0>"]}))
    index = SemIDIndex.load(path)
    assert index.codes.tolist() == [[1, 2, 3, -1], [1, 2, 3, 0]]
    assert index.encode("1") == "<a_1><b_2><c_3><d_0>"


@pytest.mark.parametrize(
    "codes, sizes, message",
    [
        ([[0, 5]], [3, 3], "outside 0..2"),
        ([[-1, -1]], [3, 3], "empty"),
        ([[0]], [3, 3], "levels"),
    ],
)
def test_bad_codes_are_named(codes, sizes, message):
    with pytest.raises(ValueError, match=message):
        SemIDIndex(["x"], np.array(codes), sizes)


def test_bad_ready_made_tokens_are_named():
    with pytest.raises(ValueError, match="item '7'.*<b_N>"):
        SemIDIndex.from_semids({"7": ["<a_1>", "<c_2>"]})


def test_unknown_item_and_catalogue_mismatch():
    data = tiny_data()
    index = tiny_index(data)
    with pytest.raises(ValueError, match="'nobody' has no Semantic ID"):
        index.encode("nobody")
    smaller = SemIDIndex(index.item_ids[:3], index.codes[:3], index.codebook_sizes)
    with pytest.raises(ValueError, match="item-03"):
        smaller.aligned(data.items)


def test_shuffled_keeps_the_set_of_semids_and_moves_items():
    index = tiny_index(tiny_data(), ragged=False)
    control = index.shuffled(0)
    assert sorted(map(tuple, control.codes)) == sorted(map(tuple, index.codes))
    assert (control.codes != index.codes).any() and control.items == index.items


def test_levels_without_a_code_take_no_place(tmp_path):
    index = SemIDIndex(["x", "y", "z"], [[1, -1, 0], [-1, 2, -1], [-1, -1, 1]], [3, 3, 2])
    assert [index.encode(item) for item in "xyz"] == ["<a_1><c_0>", "<b_2>", "<c_1>"]
    assert all(index.decode(index.encode(item)) == [item] for item in "xyz")
    index.save(tmp_path / "semids.parquet")
    assert SemIDIndex.load(tmp_path / "semids.parquet").fingerprint == index.fingerprint


def test_given_tokens_may_be_shared_by_levels_or_be_words(tmp_path):
    pieces = SemIDIndex(["x", "y"], [[1, 0], [1, -1]], [2, 2], level_tokens=[["<p_0>", "<p_1>"]] * 2)
    assert pieces.tokens == ["<p_0>", "<p_1>"] and pieces.encode("x") == "<p_1><p_0>"
    words = SemIDIndex(["x", "y"], [[1, 0], [1, -1]], [2, 2], level_tokens=[[" red", " lamp"]] * 2, adds_tokens=False)
    assert words.tokens == [] and [words.encode(item) for item in "xy"] == [" lamp red;", " lamp;"]
    assert pieces.fingerprint != words.fingerprint
    for index in (pieces, words):
        index.save(tmp_path / "semids.parquet")
        loaded = SemIDIndex.load(tmp_path / "semids.parquet")
        assert loaded.fingerprint == index.fingerprint and loaded.tokens == index.tokens
        assert loaded.decode(index.encode("y")) == ["y"] and loaded.shuffled(0).tokens == index.tokens
    with pytest.raises(ValueError, match="twice"):
        SemIDIndex(["x"], [[0]], [2], level_tokens=[["a", "a"]])
    with pytest.raises(ValueError, match="level_tokens has"):
        SemIDIndex(["x"], [[0]], [2], level_tokens=[["a"]])
