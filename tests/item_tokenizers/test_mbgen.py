"""MBGen's VQ-VAE, k-means inside its codes, and random last level."""

import numpy as np
import pyarrow as pa
import pytest
from item_tokenizers.small import blobs, small_items

from llmrec.item_tokenizers import MBGen, add_items, build_semids
from llmrec.item_tokenizers.with_behaviour.mbgen import VQVAEModule

ARGUMENTS = {"codebook_sizes": [6, 5, 60], "hidden": [16], "latent_dim": 6, "epochs": 12, "batch_size": 100}


@pytest.fixture(scope="module")
def fitted():
    features, items = blobs(300), small_items(300)
    return MBGen(**ARGUMENTS).fit(features, items=items), features, items


def test_fitted_items_are_unique_even_where_equal(fitted):
    tokenizer, features, items = fitted
    codes = tokenizer.encode(features, items)
    assert len(np.unique(codes, axis=0)) == 300
    assert (codes[-3:, :2] == codes[:3, :2]).all()  # equal features, equal clusters


def test_batches_are_equally_large():
    """Codes that nobody chose move to latents of the last batch: it must not be the rest of a division."""
    sizes = []
    module = VQVAEModule(12, [8], 4, 6)
    module.encoder.register_forward_hook(lambda _, rows, latents: sizes.append(len(latents)))
    MBGen(epochs=2, batch_size=64, device="cpu").train(module, blobs(129), seed=0)
    assert sizes == [129, 43, 43, 43, 43, 43, 43]


def test_clusters_lie_inside_the_first_codes(fitted):
    """The second code is the nearest centre among those of the first code, and deeper prefixes fit closer."""
    tokenizer, features, items = fitted
    codes, z = tokenizer.encode(features, items), tokenizer._latent(features)

    def spread(columns):
        groups = np.unique(codes[:, :columns], axis=0, return_inverse=True)[1].reshape(-1)
        return sum(((z[groups == g] - z[groups == g].mean(0)) ** 2).sum() for g in np.unique(groups))

    whole = ((z - z.mean(0)) ** 2).sum()
    assert spread(1) < 0.5 * whole and spread(2) < 0.7 * spread(1)
    for first in np.unique(codes[:, 0]):
        rows = codes[:, 0] == first
        residual = z[rows] - tokenizer._module.codebook[first].numpy()
        distances = ((residual[:, None] - tokenizer._clusters[first]) ** 2).sum(2)
        assert (distances.argmin(1) == codes[rows, 1]).mean() > 0.99


def test_the_last_level_is_random_and_does_not_hang_on_the_order(fitted):
    tokenizer, features, items = fitted
    codes = tokenizer.encode(features, items)
    assert codes[:, 2].max() > 40  # of 60, though no prefix has so many items
    order = np.arange(300)[::-1]
    pairs, again = codes[:, :2], np.empty(300, np.int32)
    again[order] = tokenizer._numbers(pairs[order], items.take(order), 0)
    assert (again == codes[:, 2]).all()
    assert (tokenizer._numbers(pairs, items, 1) != codes[:, 2]).any()


def test_new_items_take_free_numbers(fitted):
    tokenizer, features, items = fitted
    new = items.set_column(0, "item_id", pa.array([f"new{i}" for i in range(300)]))
    old_codes, codes = tokenizer.encode(features, items), tokenizer.encode(features, new)
    assert (codes[:, :2] == old_codes[:, :2]).all()  # the same features: the same clusters
    assert not {*map(tuple, codes.tolist())} & {*map(tuple, old_codes.tolist())}
    ids = items["item_id"].to_pylist()
    index = build_semids(ids, features, tokenizer, "append", collision_reserve=100, items=items)
    assert index.lengths.max() == 3  # no fitted item collides
    grown = add_items(index, tokenizer, features, new["item_id"].to_pylist(), items=new)
    assert len({grown.encode(item) for item in grown.items}) == 600


def test_the_codebook_learns():
    arguments = ARGUMENTS | {"epochs": 60, "learning_rate": 1e-2}
    history = MBGen(**arguments).fit(blobs(300), items=small_items(300)).history
    assert history[-1]["reconstruction"] < 0.7 * history[0]["reconstruction"] and history[-1]["usage"] == 1


def test_bad_input():
    features, items = blobs(), small_items()
    with pytest.raises(ValueError, match="items share the codes .* the last level has 2 numbers: raise"):
        MBGen([4, 3, 2], hidden=[8], latent_dim=4, epochs=1).fit(features, items=items)
    with pytest.raises(ValueError, match="lower codebook_sizes"):
        MBGen([8, 3, 99], hidden=[8], latent_dim=4, epochs=1).fit(features[:5], items=items.slice(0, 5))
    with pytest.raises(ValueError, match="has three levels, not 2"):
        MBGen([4, 3])
    with pytest.raises(ValueError, match="needs items"):
        MBGen().fit(features)
    with pytest.raises(ValueError, match="not fitted"):
        MBGen().encode(features, items)
    features[3, 0] = np.nan
    with pytest.raises(ValueError, match="row 3 hold NaN"):
        MBGen().fit(features, items=items)
