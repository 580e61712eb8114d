"""RQ-KMeans and R-VQ: balance, ties, samples, memory maps."""

import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import blobs

from llmrec.arrays import check_features, l2_normalize, unique_rows
from llmrec.catalogue.report import level_figures
from llmrec.item_tokenizers import RVQ, RQKMeans
from llmrec.item_tokenizers.residual.quantizer import nearest
from llmrec.item_tokenizers.residual.rq_kmeans import BALANCES


def sizes(codes, size):
    return np.bincount(codes, minlength=size)


@given(st.integers(8, 90), st.lists(st.integers(1, 8), min_size=1, max_size=3), st.integers(0, 9), st.booleans())
@settings(deadline=None, max_examples=25)
def test_greedy_clusters_differ_by_one_item_at_most(count, codebook_sizes, seed, normalize):
    features = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    features[1::3] *= 4  # without balance, some clusters are small
    listed = np.concatenate([features, features[: count // 2]])  # items of equal features count once
    tokenizer = RQKMeans(codebook_sizes, normalize, niter=4, balance="greedy").fit(listed, seed=seed)
    codes = tokenizer.encode(listed)
    for level, size in enumerate(codebook_sizes):
        assert np.ptp(sizes(codes[:count, level], size)) <= 1
    assert (codes[count:] == codes[: count // 2]).all()


def skewed(count=600, dim=16):
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 31)
    centres = 3 * rng.normal(size=(30, dim))
    return (centres[rng.choice(30, count, p=share / share.sum())] + rng.normal(size=(count, dim))).astype(np.float32)


def test_sinkhorn_is_more_balanced_than_none():
    features = skewed()
    codes = {b: RQKMeans([16, 16], balance=b).fit(features).encode(features) for b in ("none", "sinkhorn", "greedy")}
    for level in range(2):
        entropy = {b: level_figures(c[:, level], 16)["entropy"] for b, c in codes.items()}
        assert 1 - entropy["sinkhorn"] < 0.2 * (1 - entropy["none"])
        assert entropy["greedy"] > 0.9999


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("balance", ["greedy", "sinkhorn"])
def test_as_many_items_as_codes_leave_no_residual(balance):
    features = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    tokenizer = RQKMeans([8, 4], balance=balance).fit(features)
    assert sorted(tokenizer.encode(features)[:, 0]) == list(range(8))
    assert np.isfinite(tokenizer.codebooks[1]).all()


def test_constrained_is_balanced_and_closer_than_greedy():
    pytest.importorskip("k_means_constrained")
    features = skewed(203)

    def error(balance):
        tokenizer = RQKMeans([8], normalize_residuals=False, balance=balance).fit(features)
        codes = tokenizer.encode(features)[:, 0]
        assert np.ptp(sizes(codes, 8)) <= 1
        return ((features - tokenizer.codebooks[0][codes]) ** 2).sum()

    assert error("constrained") < error("greedy")


def test_constrained_names_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "k_means_constrained", None)
    with pytest.raises(ValueError, match=r"pip install 'llmrec\[balanced\]'"):
        RQKMeans([4], balance="constrained").fit(blobs())


@pytest.mark.parametrize("balance", [b for b in BALANCES if b not in ("none", "constrained")])
def test_balanced_codes_are_kept_and_new_items_go_to_the_nearest(tmp_path, balance):
    features = skewed()
    tokenizer = RQKMeans([16, 8], balance=balance).fit(features)
    assert not tokenizer.traits.nearest and RQKMeans().traits.nearest
    codes = tokenizer.encode(features)
    plain = nearest(l2_normalize(features), tokenizer.codebooks[0])
    assert (codes[:, 0] != plain).any()  # balance moved somebody
    new = features + np.float32(1e-3)
    assert (tokenizer.encode(new)[:, 0] == nearest(l2_normalize(new), tokenizer.codebooks[0])).all()
    tokenizer.save_pretrained(tmp_path / "t")
    loaded = RQKMeans.from_pretrained(tmp_path / "t")
    assert (loaded.encode(features[::-1]) == codes[::-1]).all() and (loaded.encode(new) == tokenizer.encode(new)).all()


def test_an_unknown_balance_is_named():
    with pytest.raises(ValueError, match="balance 'equal' is not one of none, greedy"):
        RQKMeans(balance="equal")


@given(st.integers(0, 999), st.sampled_from([0, 1, 1000]))
@settings(deadline=None, max_examples=25)
def test_nearest_is_exact_and_no_row_depends_on_its_neighbours(seed, offset):
    """Equal codes, more than two at one distance, and points far from the origin, where float32 has no digits left."""
    rng = np.random.default_rng(seed)
    codebook = (rng.normal(size=(9, 6)) + offset).astype(np.float32)
    codebook[[3, 5, 8]] = codebook[1]
    middle = (codebook[0] + codebook[2:5].mean(0)) / 2
    rows = np.concatenate([codebook, [middle], rng.normal(size=(30, 6)) + offset]).astype(np.float32)
    codes = nearest(rows, codebook)
    exact = ((rows[:, None].astype(np.float64) - codebook) ** 2).sum(2)
    least = exact.min(1)
    assert (exact[np.arange(len(rows)), codes] <= least + 1e-9 * (1 + offset**2)).all()
    assert not np.isin(codes, [3, 5, 8]).any()  # the lowest of equal codes
    assert all(nearest(rows[i : i + 1], codebook)[0] == codes[i] for i in range(len(rows)))


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5]), min_size=1, max_size=40), st.integers(1, 3))
def test_unique_rows(values, width):
    rows = np.resize(np.array(values, np.float32), (len(values), width))
    first = {row.tobytes(): i for i, row in reversed(list(enumerate(rows)))}
    assert unique_rows(rows).tolist() == sorted(first.values())


def test_codebooks_are_learned_from_a_sample_of_many_rows():
    features = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float32)
    tokenizer = RQKMeans([4, 4], niter=3)
    codes = tokenizer.fit(features, seed=3).encode(features)
    assert (RQKMeans([4, 4], niter=3).fit(features, seed=3).encode(features) == codes).all()
    assert (RQKMeans([4, 4], niter=3).fit(features, seed=4).codebooks[0] != tokenizer.codebooks[0]).any()
    # Copies of items change nothing: the sample is one of distinct rows.
    again = RQKMeans([4, 4], niter=3).fit(np.concatenate([features, features[:2000]]), seed=3)
    assert all((a == b).all() for a, b in zip(again.codebooks, tokenizer.codebooks))


@pytest.mark.parametrize("kind", [RQKMeans, partial(RVQ, steps=20, batch_size=256, buffer=500)])
def test_memory_maps_are_read_where_they_are(tmp_path, kind):
    features = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32)
    np.save(tmp_path / "f.npy", features)
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    assert np.shares_memory(check_features(mapped), mapped)
    tokenizer = kind([8, 8]).fit(mapped)
    codes = tokenizer.encode(mapped)
    assert (kind([8, 8]).fit(features).encode(features) == codes).all()
    batches = [tokenizer.encode(mapped[start : start + 777]) for start in range(0, 20_000, 777)]
    assert (np.concatenate(batches) == codes).all()
    assert (np.load(tmp_path / "f.npy") == features).all()
    features[[9_000, 17_000], 3] = np.nan, -np.inf
    with pytest.raises(ValueError, match=r"row 9000 hold NaN or inf \(2 such rows\)"):
        tokenizer.encode(features)
    features[[9_000, 17_000], 3] = 0, -1e16
    with pytest.raises(ValueError, match=r"row 17000 hold a number beyond 1e\+15 \(1 such rows\)"):
        tokenizer.encode(features)


def test_fitting_leaves_the_features_alone():
    features = blobs()
    before = features.copy()
    for balance in ("none", "greedy", "sinkhorn"):
        RQKMeans([8, 4], balance=balance).fit(features).encode(features)
    assert (features == before).all()


def test_rows_that_differ_in_length_alone_are_one_direction():
    rng = np.random.default_rng(0)
    collinear = (rng.normal(size=16) * rng.uniform(1, 9, size=(300, 1))).astype(np.float32)
    with pytest.raises(ValueError, match="level 1 has 8 codes for 1 distinct items .counted by direction"):
        RQKMeans([8, 4]).fit(collinear)
    RQKMeans([8, 4], normalize_residuals=False).fit(collinear)
    pairs = np.concatenate([collinear, -collinear])
    with pytest.raises(ValueError, match=r"level 1 has 3 codes for 2 distinct .*lower codebook_sizes\[0\]"):
        RQKMeans([3, 2]).fit(pairs)


def test_rvq_learns_by_gradient():
    features = skewed()

    def error(steps):
        tokenizer = RVQ([16, 16], normalize_residuals=False, steps=steps, learning_rate=0.03, buffer=40).fit(features)
        codes = tokenizer.encode(features)
        return ((features - sum(book[c] for book, c in zip(tokenizer.codebooks, codes.T))) ** 2).sum()

    kmeans = RQKMeans([16, 16], normalize_residuals=False).fit(features)
    codes = kmeans.encode(features)
    best = ((features - sum(book[c] for book, c in zip(kmeans.codebooks, codes.T))) ** 2).sum()
    assert error(300) < 0.9 * error(0) and error(300) < 1.15 * best
