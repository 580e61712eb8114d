"""The tables of docs/hardware.md and docs/scale.md are those that scripts/hardware_table.py prints."""

import re

import hardware_table
import pytest

MEASURED = "reference/scale_measured.md"


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


def test_interactions_carry_on_the_measured_table():
    pages = {name: (hardware_table.DOCS / name).read_text(encoding="utf-8") for name in ("scale.md", MEASURED)}
    rows = re.findall(
        r"^\| (\d+) M \| .* \| (\d+) \| \d+ \| ([\d.]+) \|$", pages[MEASURED].partition("## Features")[0], re.M
    )
    for millions, seconds, gib in rows[-2:]:
        count = float(millions) * 1e6
        memory = hardware_table.PACKAGES + hardware_table.DATA_BYTES * count
        assert memory / hardware_table.GIB == pytest.approx(float(gib), abs=0.01)
        assert hardware_table.DATA_S * count == pytest.approx(float(seconds), rel=0.1)
    said = f"{hardware_table.DATA_S * 1e6:.1f} µs and {hardware_table.DATA_BYTES:.0f} bytes an interaction"
    assert all(said in page for page in pages.values())
    assert f"memory: {hardware_table.DATA_BYTES:.0f} bytes an interaction" in pages["scale.md"]
