"""Properties that every item tokenizer has."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import SMALL, blobs, small_items, small_train

from llmrec.catalogue.collisions import COLLISION_POLICIES
from llmrec.catalogue.report import level_figures
from llmrec.item_tokenizers import (
    RQVAE,
    SEQUENCE_TOKENIZERS,
    TOKENIZERS,
    RQKMeans,
    add_items,
    build_semids,
    load_item_tokenizer,
    make_item_tokenizer,
)
from llmrec.item_tokenizers.protocol import tokenizer_fingerprint

ROOT = Path(__file__).parents[2]
VECTORS = [name for name, kind in TOKENIZERS.items() if kind.traits.decodes_to_vector]


def fitted(name, features, seed, **extra):
    items = small_items(len(features), seed)
    tokenizer = TOKENIZERS[name](**SMALL[name], **extra)
    return tokenizer.fit(features, seed=seed, items=items, train=small_train(items, seed=seed)), items


def test_every_tokenizer_is_tested():
    assert set(SMALL) == set(TOKENIZERS)


def test_every_tokenizer_is_in_the_documentation():
    names = [*TOKENIZERS, *SEQUENCE_TOKENIZERS]
    pages = ROOT / "docs" / "tokenizers.md", ROOT / "docs" / "reference" / "systems.md"
    listed, where = (page.read_text(encoding="utf-8") for page in pages)
    table = "".join(line for line in listed.splitlines(keepends=True) if line.startswith("| `"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in names if not all(f"`{name}`" in text for text in (table, where, readme))]
    assert f"{len(names)} ways from features to codes" in readme


@pytest.mark.parametrize("name", TOKENIZERS)
@given(seed=st.integers(0, 50))
@settings(deadline=None, max_examples=3)
def test_deterministic_and_codes_are_reproduced(tmp_path_factory, name, seed):
    check_fitted(name, {}, seed, tmp_path_factory.mktemp("t"))


@given(
    seed=st.integers(0, 50),
    mode=st.sampled_from([{}, {"preprocess": "l2"}, {"preprocess": "pca_whiten", "preprocess_dim": 5}]),
    normalize=st.booleans(),
)
@settings(deadline=None, max_examples=8)
def test_rq_kmeans_with_every_preprocessing(tmp_path_factory, seed, mode, normalize):
    check_fitted("rq_kmeans", {**mode, "normalize_residuals": normalize}, seed, tmp_path_factory.mktemp("t"))


def check_fitted(name, extra, seed, folder):
    features = blobs(seed=seed)
    tokenizer, items = fitted(name, features, seed, **extra)
    again, _ = fitted(name, features, seed, **extra)
    codes = tokenizer.encode(features, items)
    assert codes.dtype == np.int32 and codes.shape == (80, len(tokenizer.codebook_sizes))
    assert ((codes >= -1) & (codes < tokenizer.codebook_sizes)).all() and (codes >= 0).any(1).all()
    assert (again.encode(features, items) == codes).all()
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
    # The same item alone, or in another order, has the same code.
    assert (tokenizer.encode(features[7:8], items.slice(7, 1)) == codes[7:8]).all()
    backwards = np.arange(80)[::-1].copy()
    assert (tokenizer.encode(features[backwards], items.take(backwards)) == codes[backwards]).all()
    # New items get codes too.
    new = tokenizer.encode(
        blobs(9, seed=seed + 99), small_items(9, seed + 99).set_column(0, "item_id", [list("nopqrstuv")])
    )
    assert ((new >= -1) & (new < tokenizer.codebook_sizes)).all() and (new >= 0).any(1).all()

    traits = tokenizer.traits
    if traits.fixed_length:
        assert (codes >= 0).all()
    if traits.needs == ("features",):
        assert (codes[-3:] == codes[:3]).all()  # equal features, equal codes
    if traits.decodes_to_vector:
        costs = tokenizer.last_level_costs(features, codes)
        assert costs.shape == (80, tokenizer.codebook_sizes[-1]) and costs.dtype == np.float32
        assert [book.shape[0] for book in tokenizer.codebooks] == list(tokenizer.codebook_sizes)
    if tokenizer.level_tokens is not None:
        assert list(map(len, tokenizer.level_tokens)) == list(tokenizer.codebook_sizes)
    else:
        assert traits.adds_tokens

    tokenizer.save_pretrained(folder / "saved")
    loaded = load_item_tokenizer(folder / "saved")
    assert type(loaded) is type(tokenizer) and loaded.config == tokenizer.config
    assert loaded.codebook_sizes == tokenizer.codebook_sizes and loaded.level_tokens == tokenizer.level_tokens
    assert all((a == b).all() for a, b in zip(loaded.codebooks, tokenizer.codebooks, strict=True))
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    assert (loaded.encode(features, items) == codes).all()


@pytest.mark.parametrize("name", [name for name in VECTORS if TOKENIZERS[name].traits.nearest])
def test_the_last_code_is_the_cheapest(name):
    features = blobs()
    tokenizer, items = fitted(name, features, 0)
    codes = tokenizer.encode(features, items)
    costs = tokenizer.last_level_costs(features, codes)
    np.testing.assert_allclose(costs[np.arange(80), codes[:, -1]], costs.min(1), atol=1e-4)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("collision", COLLISION_POLICIES)
def test_every_policy_keeps_its_promise_and_adding_moves_nobody(name, collision):
    features = blobs()
    tokenizer, items = fitted(name, features, 0)
    ids = items["item_id"].to_pylist()
    needs_costs = collision.endswith("_last")
    if needs_costs and not (tokenizer.traits.decodes_to_vector and tokenizer.traits.fixed_length):
        with pytest.raises(ValueError, match="needs distances"):
            build_semids(ids, features, tokenizer, collision, items=items)
        return
    old = items.slice(0, 70)
    index = build_semids(ids[:70], features[:70], tokenizer, collision, collision_reserve=100, items=old)
    grown = add_items(index, tokenizer, features[70:], ids[70:], items=items.slice(70))
    assert all(grown.encode(item) == index.encode(item) for item in ids[:70])
    if collision != "keep":
        assert len({grown.encode(item) for item in ids}) == 80
        assert all(grown.decode(grown.encode(item)) == [item] for item in ids)


@pytest.mark.parametrize("name", VECTORS)
def test_bad_input(name):
    features = blobs()
    items = small_items()
    train = small_train(items)
    tokenizer = TOKENIZERS[name](**SMALL[name])
    with pytest.raises(ValueError, match="not fitted"):
        tokenizer.encode(features, items)
    for bad in (np.nan, np.inf):
        broken = features.copy()
        broken[5, 3] = bad
        with pytest.raises(ValueError, match="row 5 hold NaN or inf"):
            tokenizer.fit(broken, items=items, train=train)
    for few in (features[:1], features[:5], np.ones((80, 12), np.float32), np.zeros((80, 12), np.float32)):
        with pytest.raises(ValueError, match="lower codebook_sizes"):
            tokenizer.fit(few, items=items.slice(0, len(few)), train=train)
    with pytest.raises(ValueError, match="non-empty matrix"):
        tokenizer.fit(features[:0], items=items.slice(0, 0), train=train)
    tokenizer.fit(features, items=items, train=train)
    with pytest.raises(ValueError, match="7 dimensions, the item tokenizer was fitted with 12"):
        tokenizer.encode(features[:, :7], items)


@pytest.mark.parametrize("name", ["rq_kmeans", "rq_vae"])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match="positive"):
        TOKENIZERS[name](codebook_sizes=[8, 0])
    with pytest.raises(ValueError, match="whiten"):
        TOKENIZERS[name](preprocess="whiten")


def test_what_fit_takes_has_one_order():
    with pytest.raises(ValueError, match="items must be a table, not 3: fit takes features, items, train, seed"):
        RQKMeans().fit(blobs(), 3)


def test_unknown_names_have_a_nearest_known_one():
    with pytest.raises(ValueError, match="tokenizer 'rq-vae' is not one of rq_kmeans, .*: did you mean 'rq_vae'?"):
        make_item_tokenizer("rq-vae")
    with pytest.raises(ValueError, match="no argument 'codebook_size'; it takes .*: did you mean 'codebook_sizes'?"):
        make_item_tokenizer("rq_kmeans", {"codebook_size": 4})
    with pytest.raises(ValueError, match="collision policy 'apend' is not one of auto, .*: did you mean 'append'?"):
        make_item_tokenizer("rq_kmeans", collision="apend")


def test_a_damaged_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json does not exist"):
        load_item_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"name": "magic"}))
    with pytest.raises(ValueError, match="'magic'"):
        load_item_tokenizer(tmp_path)
    RQKMeans(**SMALL["rq_kmeans"]).fit(blobs()).save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="model.safetensors is missing or damaged"):
        load_item_tokenizer(tmp_path / "t")


def test_constant_dimensions_do_not_decide_codes():
    features = blobs()
    constant = np.concatenate([features, np.full((80, 3), 7.3, np.float32)], axis=1)
    one = RQKMeans([8, 4], preprocess="standardize").fit(features)
    two = RQKMeans([8, 4], preprocess="standardize").fit(constant)
    assert (one.encode(features) == two.encode(constant)).all()
    moved = constant.copy()
    moved[:, -1] += 100
    assert (two.encode(moved) == two.encode(constant)).all()


def test_pca_needs_that_many_directions():
    flat = np.zeros((80, 12), np.float32)
    flat[:, :2] = blobs()[:, :2]
    with pytest.raises(ValueError, match="vary in 2 directions only: lower preprocess_dim=5"):
        RQKMeans([4], preprocess="pca_whiten", preprocess_dim=5).fit(flat)
    with pytest.raises(ValueError, match="lower it"):
        RQKMeans([4], preprocess="pca_whiten", preprocess_dim=13).fit(flat)


def test_normalised_residuals_fill_the_deeper_levels():
    rng = np.random.default_rng(0)
    # Items at very different distances from their cluster, as texts are: some nearly equal, some unlike all others.
    distance = np.exp(rng.normal(size=(3000, 1)))
    features = 9 * rng.normal(size=(32, 16))[rng.integers(0, 32, 3000)] + distance * rng.normal(size=(3000, 16))

    def entropy_and_unique(**kwargs):
        codes = RQKMeans([32, 32, 32], **kwargs).fit(features).encode(features)
        return level_figures(codes[:, 2], 32)["entropy"], len(np.unique(codes, axis=0))

    normalised, plain = entropy_and_unique(), entropy_and_unique(normalize_residuals=False)
    assert normalised[0] > plain[0] + 0.03 and normalised[1] > plain[1]


def test_rq_vae_learns_and_uses_its_codebooks():
    features = blobs(600, 24)
    tokenizer = RQVAE([16, 16, 16], hidden=[32], latent_dim=8, epochs=40, batch_size=200).fit(features)
    first, last = tokenizer.history[0], tokenizer.history[-1]
    assert last["reconstruction"] < 0.7 * first["reconstruction"]
    assert min(last["usage"]) > 0.8 and len(tokenizer.history) == 40
    assert tokenizer.codebooks[0].shape == (16, 8)


def test_every_level_reaches_the_encoder():
    """The reference implementations lose the commitment gradient of all levels but the first."""
    import torch

    from llmrec.item_tokenizers.residual.rq_vae import RQVAEModule, fit_codebooks

    torch.manual_seed(0)
    x = torch.randn(60, 10)
    module = RQVAEModule(10, [12], 4, [8, 8])
    fit_codebooks(module, x, 0)

    def commitment_gradient():
        module.zero_grad()
        module(x, beta=1.0)[1].backward()
        return module.encoder[0].weight.grad.clone()

    both = commitment_gradient()
    module.codebooks = torch.nn.ParameterList([module.codebooks[0]])
    first_only = commitment_gradient()
    assert not torch.allclose(both, first_only, rtol=0.05)


def test_dead_codes_are_revived():
    features = blobs(400, 16)
    tokenizer = RQVAE([64], hidden=[32], latent_dim=8, epochs=30, reset_every=1, learning_rate=1e-2).fit(features)
    assert sum(epoch["resets"] for epoch in tokenizer.history) > 0
    assert tokenizer.history[-1]["usage"][0] > 0.6
