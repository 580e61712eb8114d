"""Every family of causal language models is searched exactly, or refused by name: docs/decoding.md has the table."""

import pytest
import transformers

from scripts.sweep_families import BEGIN, FAMILIES, PAGE, sweep_apart

TABLE = PAGE.read_text().partition(BEGIN)[2]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_exact_or_refused_as_the_table_says(family):
    result = sweep_apart(family)
    assert result["outcome"] != "WRONG", result
    (row,) = [line for line in TABLE.splitlines() if line.startswith(f"| {result['outcome']} |")]
    assert f" {family}," in row.replace(" |", ",").replace(" (", ","), result


@pytest.mark.skipif(f"transformers {transformers.__version__}:" not in TABLE, reason="the table is of another version")
def test_the_table_knows_every_family_and_none_is_wrong():
    assert f"{len(FAMILIES)} families" in TABLE and "| WRONG |" not in TABLE
