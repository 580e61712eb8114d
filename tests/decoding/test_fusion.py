import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.decoding.fusion import fuse


def log(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_a_hand_computed_mixture_with_floors():
    semantic = list(zip([7, 3, 5], log(0.5, 0.2, 0.1)))
    collaborative = list(zip([3, 9], log(0.6, 0.04)))
    fused = fuse([semantic, collaborative])
    # 3: (.2 + .6) / 2; 7: (.5 + floor .04) / 2; 9: (floor .1 + .04) / 2 = 5: (.1 + floor .04) / 2, ties by item.
    assert [item for item, _ in fused] == [3, 7, 5, 9]
    assert [math.exp(score) for _, score in fused] == pytest.approx([0.4, 0.27, 0.07, 0.07])


def test_a_view_without_items_has_no_say():
    assert [item for item, _ in fuse([[(4, -1.0), (2, -3.0)], []])] == [4, 2]
    assert fuse([[], []]) == []


LISTS = st.dictionaries(st.integers(0, 9), st.floats(-20, 0), min_size=1).map(lambda scores: list(scores.items()))


@given(LISTS, LISTS)
def test_one_list_twice_is_itself_and_the_order_of_views_is_free(one, other):
    assert dict(fuse([one, one])) == pytest.approx(dict(one))
    assert dict(fuse([one, other])) == pytest.approx(dict(fuse([other, one])))
    held = {item for item, _ in one} | {item for item, _ in other}
    assert {item for item, _ in fuse([one, other])} == held
