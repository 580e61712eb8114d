"""The tables of docs/hardware.md and docs/scale.md are those that scripts/hardware_table.py prints."""

import hardware_table
import pytest


@pytest.mark.parametrize("page", hardware_table.PAGES)
def test_a_page_has_the_tables_of_the_script(page):
    text = (hardware_table.DOCS / page).read_text(encoding="utf-8")
    assert hardware_table.written(text, hardware_table.PAGES[page]()) == text


def test_formulas_have_the_right_order():
    small = hardware_table.MODELS[0]
    assert small.parameters == 596_049_920  # Qwen3-0.6B's, as its model card rounds
    assert hardware_table.levels(10**4) == 3 and 256 ** hardware_table.levels(10**8) > 10**9
    assert hardware_table.gpus(small, 1) == 1
    many, few = hardware_table.gpus(small, 10**5), hardware_table.gpus(small, 10**4)
    assert 9 < many / few < 11
