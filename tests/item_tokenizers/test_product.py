"""Product quantisation: the digits are independent, the rotation is worth its time."""

import numpy as np
import pytest

from llmrec.item_tokenizers import OPQ, PQ
from llmrec.item_tokenizers.preprocess import Preprocess


def correlated(count=600, dim=16, seed=0):
    """Directions of very different variance, mixed: what a rotation can put right."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return ((rng.normal(size=(count, dim)) * 0.6 ** np.arange(dim)) @ turn).astype(np.float32)


def pieces(rows, digits):
    return np.split(rows.astype(np.float64), digits, axis=1)


def error(tokenizer, features):
    """Mean squared error of what the codes decode to."""
    codes = tokenizer.encode(features)
    decoded = np.concatenate([book[code] for book, code in zip(tokenizer.codebooks, codes.T)], axis=1)
    rows = features if tokenizer.rotation is None else features @ tokenizer.rotation.T
    return float(((rows - decoded) ** 2).sum(1).mean())


@pytest.mark.parametrize("kind", [PQ, OPQ])
def test_every_digit_is_the_nearest_code_of_its_piece(kind):
    features = correlated()
    tokenizer = kind(4, 16).fit(features)
    whitened = Preprocess("pca_whiten", 16).fit(features)(features)
    rows = whitened if kind is PQ else whitened @ tokenizer.rotation.T
    codes = tokenizer.encode(features)
    distances = [
        ((piece[:, None] - book) ** 2).sum(2) for piece, book in zip(pieces(rows, 4), tokenizer.codebooks, strict=True)
    ]
    for digit, distance in enumerate(distances):
        assert (codes[:, digit] == distance.argmin(1)).mean() > 0.999
    np.testing.assert_allclose(tokenizer.last_level_costs(features, codes), distances[-1], atol=1e-3)


def test_a_piece_decides_its_own_digit_only():
    features = correlated()
    tokenizer = PQ(4, 32, preprocess="none").fit(features)
    other = features.copy()
    other[:, 4:8] = features[::-1, 4:8]
    codes, changed = tokenizer.encode(features), tokenizer.encode(other)
    assert (codes[:, [0, 2, 3]] == changed[:, [0, 2, 3]]).all() and (changed[:, 1] == codes[::-1, 1]).all()
    assert not tokenizer.traits.ordered


def test_the_rotation_is_one_and_loses_less():
    features = correlated()
    plain = PQ(4, 16, preprocess="none").fit(features)
    turned = OPQ(4, 16, preprocess="none").fit(features)
    np.testing.assert_allclose(turned.rotation @ turned.rotation.T, np.eye(16), atol=1e-4)
    assert error(turned, features) < 0.9 * error(plain, features)


def test_repeated_items_pull_no_centroid():
    features = correlated()
    often = np.concatenate([features, np.repeat(features[:1], 500, 0)])
    one, two = (PQ(4, 16, preprocess="none").fit(rows) for rows in (features, often))
    assert all((a == b).all() for a, b in zip(one.codebooks, two.codebooks))


def test_the_default_dimension_divides_into_digits():
    features = np.random.default_rng(0).normal(size=(700, 300)).astype(np.float32)
    widths = {digits: PQ(digits, 4, niter=1).fit(features).codebooks[0].shape[1] for digits in (4, 12, 16, 64)}
    assert widths == {4: 32, 12: 10, 16: 8, 64: 4}


def test_clear_errors():
    for digits in (3, 65):
        with pytest.raises(ValueError, match=f"digits={digits} must lie between 4 and 64"):
            PQ(digits)
    with pytest.raises(ValueError, match="power of two"):
        OPQ(codebook_size=100)
    assert PQ(4, 100).fit(correlated()).encode(correlated()).max() == 99
    with pytest.raises(ValueError, match="preprocess_dim=30 must be a multiple of digits=4"):
        PQ(4, preprocess_dim=30)
    with pytest.raises(ValueError, match="16 dimensions cannot be cut into digits=5"):
        PQ(5, 16, preprocess="none").fit(correlated())
    flat = correlated()
    flat[:, 12:] = flat[:1, 12:]
    with pytest.raises(ValueError, match="1 distinct vectors at digit 3 for 16 codes: lower codebook_sizes"):
        PQ(4, 16, preprocess="none").fit(flat)
