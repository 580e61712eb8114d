import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.serving.demo.tree_view import Node, draw, grow
from llmrec.serving.demo.views import codes, escape, found, notice, recommendations, shares, tokens_of

EVIL = "<img src=x onerror=\"alert('1')\"> ${2+2} {{value}} `x` \\u003c </script>&amp;"


def item(number: int, semid: str, score: float, title: str = "") -> dict:
    return {"item_id": f"i{number}", "title": title or f"title {number}", "semid": semid, "score": score}


def nodes(node: Node, prefix: tuple = ()):
    yield prefix, node
    for child in node.children.values():
        yield from nodes(child, (*prefix, child.token))


ragged = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.floats(-30, 0)), min_size=1, max_size=30
)


@given(ragged, st.integers(1, 6), st.integers(0, 40))
def test_the_mass_of_a_prefix_is_the_log_sum_exp_of_its_items(rows, shown, target):
    rows = sorted(rows, key=lambda row: -row[1])
    items = [item(n, "".join(f"<{'abcd'[i]}_{c}>" for i, c in enumerate(cs)), s) for n, (cs, s) in enumerate(rows)]
    root = grow(items, shown, f"i{target}")
    total = math.log(math.fsum(math.exp(other["score"]) for other in items))
    lines = []
    for prefix, node in nodes(root):
        below = [other["score"] for other in items if tuple(tokens_of(other["semid"]))[: len(prefix)] == prefix]
        assert node.mass == pytest.approx(math.exp(math.log(math.fsum(map(math.exp, below))) - total), abs=1e-9)
        masses = [child.mass for child in node.children.values()]
        assert math.fsum([*masses, *(one["mass"] for one in node.items), node.folded_mass]) == pytest.approx(
            node.mass, abs=1e-9
        )
        assert masses == sorted(masses, reverse=True)
        lines += [one["item_id"] for one in node.items]
    best = {other["item_id"] for place, other in enumerate(items) if place < shown or place == target}
    assert sorted(lines) == sorted(best)
    assert sum(node.folded for _, node in nodes(root)) == len(items) - len(best)


def test_items_are_folded_into_the_deepest_prefix_that_is_shown():
    items = [item(0, "<a_1><b_1><c_1>", -1), item(1, "<a_1><b_1><c_2>", -2), item(2, "<a_2><b_1>", -3)]
    root = grow(items, shown=1)
    branch = root.children["<a_1>"]
    assert root.folded == 1 and branch.folded == 0 and branch.children["<b_1>"].folded == 1


def test_the_true_item_has_a_line_however_far_down_it_stands():
    items = [item(n, f"<a_{n}>", -n) for n in range(30)]
    assert "★ title 29" in draw(items, target="i29", shown=3) and "★" not in draw(items, target="other", shown=3)


@pytest.mark.parametrize(
    "semid, tokens",
    [
        ("<a_12><b_7>", ["<a_12>", "<b_7>"]),
        ("<|sid_begin|><s_a_1><|sid_end|>", ["<|sid_begin|>", "<s_a_1>", "<|sid_end|>"]),
        ("12-7", ["12-7"]),
        ("x<a_1>", ["x<a_1>"]),
        ("", [""]),
    ],
)
def test_tokens(semid, tokens):
    assert tokens_of(semid) == tokens


def test_shares_of_far_away_scores():
    assert shares([]) == []
    assert shares([-1e6, -1e6]) == [0.5, 0.5]
    assert shares([0.0, -1e9]) == [1.0, 0.0]


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_a_drawing_is_one_group_per_level_in_order(depth):
    items = [item(n, "".join(f"<{'abcdefgh'[i]}_{n % (i + 2)}>" for i in range(depth)), -n / 3) for n in range(50)]
    svg = ElementTree.fromstring(draw(items)).find("svg")
    groups = svg.findall("g")
    assert [group.get("style") for group in groups] == [f"--level:{level}" for level in range(depth + 2)]
    assert [len(group.findall("g")) for group in groups[1:-1]] == [
        len({tuple(tokens_of(one["semid"]))[:level] for one in items[:12]}) for level in range(1, depth + 1)
    ]
    height = float(svg.get("viewBox").split()[3])
    assert all(0 < float(text.get("y")) < height for text in svg.iter("text"))


def test_no_tree_without_items():
    assert draw([]) == ""


def test_texts_of_the_server_are_text_everywhere():
    evil = [item(0, "<a_1><b_1>", -1, EVIL), {**item(1, EVIL, -2), "item_id": EVIL}]
    pages = [
        draw(evil),
        recommendations(evil, 5, explains=True),
        found(evil, "x"),
        notice(EVIL),
        codes(EVIL),
        draw(evil, EVIL),
    ]
    for html in pages:
        assert "<img" not in html and "</script>" not in html and "alert('" not in html
        assert not re.search(r"[${}`\\]", html)
        ElementTree.fromstring(f"<div>{html}</div>".replace("&#x27;", "'"))  # and it is well-formed


def test_escape_can_be_undone():
    import html

    assert html.unescape(escape(EVIL)) == EVIL
