"""The drift report: quiet where newcomers are like the others, loud where they are not."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.catalogue.drift import code_distances, drift_lines, drift_report, nearest_distances, write_drift_report
from llmrec.catalogue.semids import SemIDIndex
from llmrec.item_tokenizers import RQKMeans, add_items, build_semids

OLD, NEW = 1000, 200
BEYOND = ("beyond_p95", "beyond_p99")


def items_of(seed, count, shift=0.0, dim=16):
    """Items around 20 centres; `shift` moves all of them in one direction."""
    rng = np.random.default_rng(seed)
    rows = np.random.default_rng(99).normal(size=(20, dim))[rng.integers(0, 20, count)]
    rows = rows + 0.5 * rng.normal(size=(count, dim))
    rows[:, 0] += shift * 4
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def report_of(seed, shift, sizes=(32, 128)):
    features = np.concatenate([items_of(seed, OLD), items_of(seed + 1000, NEW, shift)])
    ids = [f"i{row}" for row in range(OLD + NEW)]
    tokenizer = RQKMeans(sizes, niter=5).fit(features[:OLD])
    index = add_items(build_semids(ids[:OLD], features[:OLD], tokenizer), tokenizer, features[OLD:], ids[OLD:])
    return drift_report(index, features, np.arange(OLD + NEW) >= OLD)


def test_newcomers_from_the_same_source_look_like_old_items():
    reports = [report_of(seed, shift=0) for seed in range(12)]
    assert all(report["verdict"] != "refit" for report in reports)
    for measure in range(3):
        p95, p99 = (np.mean([report["distances"][measure][key] for report in reports]) for key in BEYOND)
        assert 0.02 < p95 < 0.1 and p99 < 0.03


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=4)
def test_newcomers_from_elsewhere_are_found(seed):
    report = report_of(seed, shift=1.0)
    assert all(row["beyond_p95"] > 0.5 for row in report["distances"])
    assert report["verdict"] == "refit" and "beyond the 95th percentile: nearest old item" in report["reasons"][0]


@given(seed=st.integers(0, 50))
@settings(deadline=None, max_examples=10)
def test_an_old_item_is_measured_as_if_it_were_new(seed):
    rng = np.random.default_rng(seed)
    features, codes = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 3, (30, 1))
    old = np.ones(30, bool)
    codes[:6, 0] = [0, 0, 1, 1, 2, 2]  # no code for one item alone
    as_old, near = code_distances(features, codes, old), nearest_distances(features, old, np.arange(30))
    for row in (0, 7, 29):
        without = old.copy()
        without[row] = False
        assert code_distances(features, codes, without)[row, 0] == pytest.approx(as_old[row, 0], rel=1e-4)
        assert nearest_distances(features, without, np.array([row]))[0] == pytest.approx(near[row], rel=1e-4)


def test_a_code_stands_for_what_is_left_of_its_items():
    # Level 1: left and right; level 2: up and down, the same on both sides.
    side, height = np.repeat([-10.0, 10.0], 8), np.tile([-1.0, 1.0], 8)
    features = np.stack([side, height], 1).astype(np.float32)
    codes = np.stack([side > 0, height > 0], 1).astype(int)
    distances = code_distances(features, codes, np.ones(16, bool))
    np.testing.assert_allclose(distances[:, 0], 8 / 7, rtol=1e-5)  # the other seven lean to the other height
    assert distances[:, 1].max() < 0.2


def test_fresh_codes_full_prefixes_and_spare_numbers():
    codes = [[0, 0, -1], [0, 1, -1], [1, 0, -1], [1, 0, 0], [2, 1, -1], [0, 0, 1]]
    reserved = {"reserved": {"x": [[1, 0, 2]]}, "reserved_versions": {"x": 2}}
    index = SemIDIndex(list("abcdef"), codes, [3, 2, 4], info={"collision": "append", **reserved})
    newcomers = np.array([0, 0, 0, 0, 1, 1], bool)
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    report = drift_report(index, features, newcomers)
    assert report["codes"][0] == {
        "size": 3, "used_before": 2, "used_now": 3, "fresh_codes": 1, "newcomers_with_them": 1,
    }  # fmt: skip
    assert report["newcomers_with_fresh_codes"] == 1
    assert report["prefixes"] == {"all": 3, "full": 1, "items": 3, "newcomers": 1}
    assert report["groups"] == {"before": 2, "now": 2}
    level = report["collision_level"]
    assert (level["numbers_before"], level["numbers_now"], level["spare_used"]) == (1, 3, 2 / 3)
    assert report["verdict"] == "watch" and "too few to judge" in report["reasons"][0]
    # The number of an item that was there from the beginning was taken then.
    index.info["reserved_versions"] = {}
    level = drift_report(index, features, newcomers)["collision_level"]
    assert (level["numbers_before"], level["numbers_now"], level["spare_used"]) == (3, 3, 0)


def test_without_newcomers_and_without_old_items(tmp_path):
    features = items_of(0, 50)
    ids = [f"i{row}" for row in range(50)]
    index = build_semids(ids, features, RQKMeans([4, 4], niter=2).fit(features))
    report = drift_report(index, features, np.zeros(50, bool))
    assert report["verdict"] == "keep" and report["distances"] == []
    write_drift_report(report, tmp_path / "empty")
    with pytest.raises(ValueError, match="make new Semantic IDs"):
        drift_report(index, features, np.ones(50, bool))
    with pytest.raises(ValueError, match="50 items, 49 rows"):
        drift_report(index, features[1:], np.zeros(50, bool))


def test_files_and_ready_made_semids_with_several_ids_per_item(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"i{row}" for row in range(60)]
    index = SemIDIndex([*ids, "i0"], rng.integers(0, 5, (61, 3)), [5, 5, 5])  # no tokenizer, no collision level
    report = drift_report(index, items_of(1, 60), np.arange(60) >= 30)
    assert report["collision_level"] is None and len(report["distances"]) == 4
    write_drift_report(report, tmp_path / "drift")
    assert json.loads((tmp_path / "drift" / "report.json").read_text()) == report
    assert "\n".join(drift_lines(report)) in (tmp_path / "drift" / "report.md").read_text()
    assert (tmp_path / "drift" / "drift.png").read_bytes().startswith(b"\x89PNG")
