"""Preprocessing: principal components against scikit-learn's, columns far from zero, and the memory that it takes."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA

from llmrec.item_tokenizers import OPQ, PQ, RQVAE, MBGen
from llmrec.item_tokenizers.preprocess import Preprocess


def mixed(count, dim=24, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + 3 * rng.normal(size=dim)).astype(np.float32)


@pytest.mark.parametrize("count", [12, 24, 25, 9_000])
def test_principal_components_are_those_of_scikit_learn(count):
    features = mixed(count)
    dim = min(8, count - 1)
    expected = PCA(dim, whiten=True, svd_solver="full").fit_transform(features.astype(np.float64))
    np.testing.assert_allclose(Preprocess("pca_whiten", dim).fit(features)(features), expected, atol=1e-4)


def test_a_column_far_from_zero_counts():
    far = np.random.default_rng(0).normal(1e6, 0.5, size=(500, 1)).astype(np.float32)
    constant = np.full((500, 1), 1e6, np.float32)
    constant[::2] = np.nextafter(constant[::2], np.float32(2e6))  # float32 has nothing between the two
    rows = np.concatenate([far, constant], axis=1)
    np.testing.assert_allclose(Preprocess("standardize").fit(rows)(rows).std(0), [1, 0], atol=1e-3)


def peak(function, *arguments):
    """Bytes that NumPy held at most while this ran."""
    tracemalloc.start()
    try:
        return function(*arguments), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode, dim", [("l2", None), ("standardize", None), ("pca_whiten", 64)])
def test_no_copy_of_all_rows_in_float64_is_held(mode, dim):
    features = mixed(60_000, 128)
    preprocess, held = peak(Preprocess(mode, dim).fit, features)
    assert held < 1.5 * features.nbytes
    result, held = peak(preprocess, features)
    assert held < result.nbytes + 0.9 * features.nbytes
    assert (result[-3:] == preprocess(features[-3:])).all()


@pytest.mark.parametrize("kind", [PQ, OPQ, RQVAE, MBGen])
def test_tokenizers_encode_without_a_copy_of_all_rows(kind):
    features = mixed(60_000, 128)
    items = pa.table({"item_id": [f"i{i}" for i in range(len(features))]})
    product = {"digits": 4, "codebook_size": 8}
    network = {"codebook_sizes": [8, 6, 200], "epochs": 1, "hidden": [8], "latent_dim": 4}
    tokenizer = kind(**(product if kind in (PQ, OPQ) else network), preprocess="standardize")
    tokenizer.fit(features[:1000], items=items.slice(0, 1000))
    transform = tokenizer.encode if kind in (PQ, OPQ) else tokenizer._latent
    result, held = peak(transform, features)
    assert held < 0.9 * features.nbytes
    assert (result[-3:] == transform(features[-3:])).all()
