"""Semantic IDs that others made, in the ways they write them."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_data, tiny_index, tiny_model

from llmrec.catalogue.ready_made import ready_made_semids
from llmrec.catalogue.semid_tokens import PATTERNS
from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import SemIDTrie

OPENONEREC = "<|sid_begin|><s_a_340><s_b_66><s_c_3><|sid_end|>"
EUGENEYAN = "<|sid_start|><|sid_5|><|sid_300|><|sid_600|><|sid_end|>"


def catalogue(**columns):
    return pa.table({"item_id": ["x", "y", "z"], **columns})


@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=8),
    pattern=st.sampled_from([*PATTERNS, "<item_{level}_{code}>", "[{level}-{code}]"]),
    form=st.sampled_from(["tokens", "string", "codes"]),
)
def test_every_pattern_and_form_comes_back(rows, pattern, form):
    codes = np.array([row + [-1] * (4 - len(row)) for row in rows])
    index = SemIDIndex([f"i{n}" for n in range(len(rows))], codes, [10] * 4, pattern)
    if form == "string" and pattern.startswith("["):
        return  # a string is cut at < and >
    write = {"tokens": index.tokens_of_row, "string": index.semid_of_row, "codes": rows.__getitem__}[form]
    given_pattern = None if pattern in PATTERNS and form != "codes" else pattern
    again = SemIDIndex.from_semids(
        {f"i{n}": write(n) for n in range(len(rows))}, [10] * max(map(len, rows)), given_pattern
    )
    assert [again.encode(item) for item in again.items] == [index.encode(item) for item in index.items]


def test_published_tokens_stay_as_they_are(caplog):
    caplog.set_level(logging.INFO)
    index = ready_made_semids(catalogue(sid=[OPENONEREC, OPENONEREC, OPENONEREC.replace("66", "67")]), "sid")
    assert index.encode("z") == "<s_a_340><s_b_67><s_c_3>" and index.decode("<s_a_340><s_b_66><s_c_3>") == ["x", "y"]
    assert index.codebook_sizes == (341, 256, 256) and index.pattern == PATTERNS["openonerec"]
    assert "<|sid_begin|> <|sid_end|> are dropped" in caplog.text
    other = ready_made_semids(catalogue(sid=[EUGENEYAN] * 3), "sid", codebook_sizes=[256] * 3)
    assert other.codes[0].tolist() == [5, 44, 88] and other.encode("x") == "<|sid_5|><|sid_300|><|sid_600|>"


@pytest.mark.parametrize(("semid", "size"), [(OPENONEREC, 400), (EUGENEYAN, 256)])
def test_markers_can_be_kept_for_a_published_model(tmp_path, semid, size):
    items = catalogue(sid=[semid] * 3)
    index = ready_made_semids(items, "sid", codebook_sizes=[size] * 3, keep_markers=True)
    index.save(tmp_path / "semids.parquet", items)
    index = SemIDIndex.load(tmp_path / "semids.parquet")
    assert index.encode("x") == semid and index.num_levels == 5
    _, tokenizer = tiny_model(tiny_data(), tiny_index(tiny_data()))
    tokenizer.add_tokens(index.tokens)
    assert SemIDTrie.from_index(index, tokenizer).depth == 5


def test_files(tmp_path):
    codes = [[1, 2], [1, 2], [3, 0, 1]]
    tokens = [["<a_1>", "<b_2>"], ["<a_1>", "<b_2>"], ["<a_3>", "<b_0>", "<c_1>"]]
    expected = SemIDIndex.from_semids(dict(zip("xyz", tokens)))
    sources = {}
    for name, semids in (("tokens", tokens), ("codes", codes), ("strings", list(map("".join, tokens)))):
        (tmp_path / f"{name}.json").write_text(json.dumps(dict(zip("xyz", semids))))
        column = "codes" if name == "codes" else "semid"
        pq.write_table(pa.table({"item_id": list("zyx"), column: semids[::-1]}), tmp_path / f"{name}.parquet")
        sources |= {f"{name}.json": 0, f"{name}.parquet": 0}
    expected.save(tmp_path / "own.parquet")
    for name in [*sources, "own.parquet"]:
        index = ready_made_semids(catalogue(), str(tmp_path / name))
        assert index.fingerprint == expected.fingerprint, name
        assert index.info["collisions_after"]["unique"] == 2


@pytest.mark.parametrize(
    ("semids", "sizes", "first"),
    [
        ([["<a_1>", "<b_2>"], ["<a_3>"]], None, "<a_1><b_2>"),
        (["<a_1><b_2>", "<a_3>"], None, "<a_1><b_2>"),
        ([[1, 2], [3]], None, "<a_1><b_2>"),
        ([OPENONEREC, OPENONEREC], None, "<s_a_340><s_b_66><s_c_3>"),
        ([EUGENEYAN, EUGENEYAN], [256] * 3, "<|sid_5|><|sid_300|><|sid_600|>"),
    ],
)
def test_an_index_json_is_read_alike_with_and_without_a_catalogue(tmp_path, semids, sizes, first):
    path = tmp_path / "shop.index.json"
    path.write_text(json.dumps(dict(zip("xy", semids))))
    alone = SemIDIndex.load(path, sizes)
    assert alone.encode("x") == first and alone.info == {"source": "shop.index.json"}
    items = pa.table({"item_id": ["x", "y"]})
    assert ready_made_semids(items, str(path), sizes).fingerprint == alone.fingerprint
    path.write_text(json.dumps({"x": semids[0], "y": "<z_1>"}))
    with pytest.raises(ValueError, match="item '[xy]'"):
        SemIDIndex.load(path, sizes)
    path.write_text("{}")
    with pytest.raises(ValueError, match="shop.index.json should hold a non-empty mapping"):
        SemIDIndex.load(path)


@pytest.mark.parametrize(
    ("semids", "message"),
    [
        ([["<a_1>"], ["<b_1>"], ["<a_2>"]], "item 'y': token '<b_1>' at level 1 should read <a_N>"),
        ([["<a_1>"], ["<a_1>", "<a_2>"], ["<a_2>"]], "item 'y': token '<a_2>' at level 2 should read <b_N>"),
        ([["<a_1>"], [], ["<a_1>"]], "item 'y' has no Semantic ID in column 'sid'"),
        ([["<a_1>"], None, ["<a_1>"]], "item 'y' has no Semantic ID in column 'sid'"),
        (["<a_1>", "<a_1> red", "<a_1>"], "item 'y': Semantic ID '<a_1> red' is no row of tokens"),
        ([["token1"], ["token2"], ["token3"]], "item 'x': token 'token1' at level 0 reads like none of <a_7>"),
        ([OPENONEREC, "<s_a_1>", OPENONEREC], "item 'y': '<s_a_1>' has other markers"),
        ([OPENONEREC, "<|sid_begin|><|sid_end|>", OPENONEREC], "item 'y' has an empty Semantic ID"),
        ([EUGENEYAN] * 3, "'<|sid_5|>' number the codes of all levels: give codebook_sizes"),
        ([[1.5], [2.0], [3.0]], "item 'x': Semantic ID \\[1.5\\] is no list of tokens or of whole numbers"),
        ([[1], [-4], [2]], "item 'y': code -4 at level 0"),
        ([1, 2, 3], "item 'x': Semantic ID 1 is no list"),
    ],
)
def test_clear_errors(semids, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        ready_made_semids(catalogue(sid=semids), "sid")


def test_clear_errors_of_files(tmp_path):
    with pytest.raises(ValueError, match="token '<|sid_700|>' is none of level 2".replace("|", r"\|")):
        ready_made_semids(catalogue(sid=["<|sid_1|><|sid_700|>"] * 3), "sid", codebook_sizes=[256, 256])
    with pytest.raises(ValueError, match="neither a column"):
        ready_made_semids(catalogue(), "semid")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="list.json should hold a non-empty mapping"):
        ready_made_semids(catalogue(), str(tmp_path / "list.json"))
    pq.write_table(pa.table({"id": ["x"], "semid": ["<a_1>"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="needs columns item_id and semid or codes"):
        ready_made_semids(catalogue(), str(tmp_path / "t.parquet"))
    (tmp_path / "some.json").write_text(json.dumps({"x": [1], "y": [2]}))
    with pytest.raises(ValueError, match="item 'z' has no Semantic ID in some.json"):
        ready_made_semids(catalogue(), str(tmp_path / "some.json"))


@pytest.mark.parametrize(
    "semid", [[10**9, 1], [2**31, 1], [10**20, 1], [-1, 1], ["<a_1000000000>", "<b_1>"], "<s_a_99999999999><s_b_0>"]
)
def test_a_code_that_no_codebook_can_have_is_refused_by_its_item(semid):
    with pytest.raises(ValueError, match=r"item 'y': code -?\d+ at level 0 is outside 0\.\.4194303"):
        SemIDIndex.from_semids({"y": semid})
    with pytest.raises(ValueError, match="codes are more than"):
        SemIDIndex(["x"], np.array([[1]]), [10**9])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("openonerc", "'openonerc' is neither one of default, openonerec, .*did you mean 'openonerec'"),
        ("<{level}>", "nor a template .*with {code}"),
        ("<{levle}_{code}>", "nor a template .*with {code}"),
        ("<{code>", "nor a template .*with {code}"),
    ],
)
def test_an_unknown_pattern_is_named_with_its_nearest(pattern, message):
    for semid in (["<s_a_1>"], [1]):
        with pytest.raises(ValueError, match=message):
            SemIDIndex.from_semids({"x": semid}, pattern=pattern)
    with pytest.raises(ValueError, match=message):
        SemIDIndex(["x"], np.array([[1]]), [3], pattern)
