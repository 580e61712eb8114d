"""What RQ-VAE's presets, losses and relatives promise, beside what every item tokenizer does."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import blobs, small_items, small_train

from llmrec.catalogue.report import neighbours_kept
from llmrec.item_tokenizers import LETTER, RQVAE, CoST, ETEGRec, make_item_tokenizer
from llmrec.item_tokenizers.residual.autoencoder import batches_of
from llmrec.item_tokenizers.residual.etegrec import code_log_probabilities, training_windows
from llmrec.item_tokenizers.residual.rq_vae import RQVAEModule
from llmrec.item_tokenizers.residual.rq_vae_losses import Collaborative, Diversity, Step, grouped, infonce

SMALL = {"codebook_sizes": [8, 6, 4], "hidden": [16], "latent_dim": 6}


def step_of(codes, vectors, quantised=None, decoded=None, x=None, **other):
    return Step(decoded, torch.zeros(()), codes, [], vectors, quantised, x, **other)


def test_the_preset_is_the_paper_s_recipe_and_arguments_override_it():
    tokenizer = RQVAE(preset="tiger", codebook_sizes=[8, 8], epochs=3, hidden=[16])
    assert tokenizer.config["optimizer"] == "adagrad" and tokenizer.config["learning_rate"] == 0.4
    assert tokenizer.config["epochs"] == 3 and tokenizer.config["hidden"] == [16]
    assert tokenizer.fit(blobs()).history[-1]["resets"] == 0 and len(tokenizer.history) == 3
    assert RQVAE(**tokenizer.config).config == tokenizer.config


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="no argument 'epoch'; it takes codebook_sizes, .*: did you mean 'epochs'?"):
        make_item_tokenizer("rq_vae", {"epoch": 3})
    with pytest.raises(ValueError, match="preset 'paper' is not one of default, tiger"):
        RQVAE(preset="paper")
    with pytest.raises(ValueError, match="reconstruction 'l1' is not one of mse"):
        RQVAE(reconstruction="l1")
    with pytest.raises(ValueError, match="optimizer 'sgd'"):
        RQVAE(optimizer="sgd")


@given(st.integers(1, 500), st.integers(1, 100))
def test_batches_hold_every_row_once_and_are_equally_large(count, batch_size):
    batches = batches_of(count, batch_size, torch.Generator().manual_seed(0))
    assert torch.cat(batches).sort().values.tolist() == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1 and len(batches) == -(-count // batch_size)


def test_dead_codes_move_to_different_items_whatever_the_batch_size():
    features = np.random.default_rng(0).normal(size=(65, 6)).astype(np.float32)
    torch.manual_seed(0)
    module = RQVAEModule(6, [8], 4, [16])
    with torch.no_grad():
        module.codebooks[0][:] = 100 + torch.arange(16.0)[:, None]  # all but the first are nobody's
    settings = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0, "beta": 0.25, "reset_every": 1}
    tokenizer = RQVAE([16], epochs=2, batch_size=64, refit=False, device="cpu", **settings)
    history = tokenizer.train(module, features, {}, seed=0)
    assert history[0]["resets"] == 15
    assert history[1]["usage"] > [0.4]


def test_train_is_needed_only_where_the_collaborative_loss_counts():
    assert "train" in LETTER().traits.needs and "train" in RQVAE(collaborative_weight=0.1).traits.needs
    with pytest.raises(ValueError, match="'letter' needs items"):
        LETTER(**SMALL).fit(blobs())
    LETTER(**SMALL, collaborative_weight=0, epochs=1).fit(blobs())


def test_letter_at_its_defaults_puts_items_together_that_are_consumed_together():
    """Features say nothing; the sequences hold forty circles of fifteen items that never mix. (Few items want smaller
    batches; at the paper's weight the loss stays at ln 32 and no neighbour is gained.)"""
    rng = np.random.default_rng(0)
    items = small_items(600)
    ids, members = items["item_id"].to_pylist(), np.arange(600).reshape(40, 15)
    lists = [[ids[i] for i in rng.permutation(members[user % 40])[:8]] for user in range(1000)]
    train = pa.table({"user_id": [str(user) for user in range(1000)], "item_ids": lists})
    features = rng.normal(size=(600, 32)).astype(np.float32)
    circles = np.stack([np.delete(members[item // 15], item % 15) for item in range(600)])

    def kept(kind):
        tokenizer = kind(batch_size=32).fit(features, items=items, train=train)
        return neighbours_kept(tokenizer.encode(features), np.arange(600), circles), tokenizer.history

    (letter, history), (plain, _) = kept(LETTER), kept(RQVAE)
    assert history[-1]["collaborative"] < 0.5 * np.log(32)
    assert letter > 2 * plain


def test_a_collaborative_loss_wants_an_even_latent():
    with pytest.raises(ValueError, match="latent_dim=5 must be even"):
        LETTER(**SMALL | {"latent_dim": 5})


def test_the_collaborative_loss_ignores_items_without_neighbours():
    embeddings = np.zeros((5, 3), np.float32)
    embeddings[:2] = np.eye(3)[:2]
    loss = Collaborative(embeddings)
    quantised = 10 * torch.eye(3)[[0, 1, 2]]
    rows = torch.tensor([0, 1, 4])
    with_stranger = loss(step_of(None, None, quantised, rows=rows))
    assert with_stranger == loss(step_of(None, None, quantised[:2], rows=rows[:2])) and with_stranger < 1e-3
    assert loss(step_of(None, None, quantised[2:], rows=rows[2:])) == 0


@given(size=st.integers(1, 300), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_groups_of_codes_are_about_equal(size, seed):
    codebook = np.random.default_rng(seed).normal(size=(size, 4)).astype(np.float32)
    order, place, start, held = map(np.asarray, grouped(codebook, 10))
    assert sorted(order) == list(range(size)) and (order[start + place] == np.arange(size)).all()
    assert ((0 <= place) & (place < held)).all()
    if size >= 100:
        assert held.max() <= 2 * size / 10


@given(size=st.integers(1, 60), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_a_diversity_target_is_another_code_of_the_group(size, seed):
    torch.manual_seed(seed)
    codebook = torch.randn(size, 4)
    diversity = Diversity([codebook], seed)
    codes = torch.randint(size, (50,))
    assert torch.isfinite(diversity(step_of(codes[:, None], [codebook[codes]], codebook[codes])))
    order, place, start, held = diversity.groups[0]
    targets = diversity._targets(codes, order, place, start, held)
    alone = held[codes] == 1
    assert (targets[alone] == -1).all() and (targets[~alone] != codes[~alone]).all()
    assert (start[targets[~alone]] == start[codes[~alone]]).all()


def test_diversity_reaches_every_member_of_a_group():
    codebook = torch.cat([torch.zeros(3, 2), torch.full((3, 2), 9.0)]) + 0.1 * torch.randn(
        6, 2, generator=torch.Generator().manual_seed(0)
    )
    diversity = Diversity([codebook], 0, groups=2)
    codes = torch.zeros(200, dtype=torch.long)
    diversity(step_of(codes[:, None], [codebook[codes]], codebook[codes]))
    assert set(diversity._targets(codes, *diversity.groups[0]).tolist()) == {1, 2}


def test_infonce_wants_the_own_item_not_its_length():
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    right = infonce(step_of(None, None, decoded=5 * x, x=x), 0.1)
    wrong = infonce(step_of(None, None, decoded=x.roll(1, 0), x=x), 0.1)
    assert right < 0.1 < wrong


def test_cost_learns_to_tell_items_apart():
    history = CoST([16, 16], hidden=[32], latent_dim=8, epochs=30, batch_size=50).fit(blobs(400, 24)).history
    assert history[-1]["reconstruction"] < 0.7 * history[0]["reconstruction"]


def test_etegrec_needs_sequences_of_two():
    items = small_items()
    train = small_train(items, length=1)
    with pytest.raises(ValueError, match="two or more items"):
        ETEGRec(**SMALL, epochs=1).fit(blobs(), items=items, train=train)


def test_windows_hold_the_latest_items():
    train = small_train(small_items(), users=3, length=7)
    ids = small_items()["item_id"].to_pylist()
    windows = training_windows(train, ids, 4, "etegrec")
    assert [[ids[i] for i in row] for row in windows.tolist()] == [row[-5:] for row in train["item_ids"].to_pylist()]
    wide = training_windows(train, ids, 9, "etegrec")
    assert wide.shape == (3, 10) and (wide[:, 7:] == -1).all() and (wide[:, :7] >= 0).all()


def test_code_probabilities_peak_at_the_code_and_add_up():
    torch.manual_seed(0)
    books = [torch.randn(8, 4), torch.randn(6, 4)]
    z = torch.randn(5, 4)
    first, second = code_log_probabilities(books, z)
    assert (first.argmax(1) == torch.cdist(z, books[0]).argmin(1)).all()
    torch.testing.assert_close(second.exp().sum(1), torch.ones(5))


def test_etegrec_aligns_and_moves_some_items():
    features, items = blobs(300, 16), small_items(300)
    train = small_train(items, users=200)
    arguments = {"codebook_sizes": [16, 16], "hidden": [32], "latent_dim": 8, "epochs": 20, "cycles": 4, "width": 16}
    arguments |= {"sia_weight": 0.1, "psa_weight": 0.1, "tokenizer_learning_rate": 1e-3, "sequence_batch_size": 50}
    tokenizer = ETEGRec(**arguments).fit(features, items=items, train=train)
    cycles = [entry for entry in tokenizer.history if "changed" in entry]
    assert len(cycles) == 4 and cycles[-1]["psa"] < cycles[0]["psa"]
    assert cycles[-1]["recommendation"] < cycles[0]["recommendation"]
    # What `changed` says is what a user sees.
    plain = RQVAE(**{key: arguments[key] for key in ("codebook_sizes", "hidden", "latent_dim", "epochs")})
    moved = (plain.fit(features).encode(features) != tokenizer.encode(features, items)).any(1).mean()
    assert 0 < moved == pytest.approx(cycles[-1]["changed"], abs=0.02)
