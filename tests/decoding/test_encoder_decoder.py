"""Models with an encoder: the tree search finds what `generate` finds with a prefix function, prompts encoded once."""

import logging

import numpy as np
import pytest
import torch
from reference_search import EOS, VOCABULARY, assert_same, found, matrix, next_tokens, prompts, random_semids
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from llmrec.decoding import search, search_items, self_check, tree_beam_search
from llmrec.decoding.trie import SemIDTrie

LENGTHS = [9, 4, 13]
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,  # so that positions of a SemID fall into several
    "relative_attention_max_distance": 16,
    "initializer_factor": 2.0,
    "pad_token_id": 0,
    "eos_token_id": EOS,
    "decoder_start_token_id": 0,
}


def t5(seed: int = 0, kind: str = "t5", **settings):
    """A random model, whose relative positions matter."""
    torch.manual_seed(seed)
    config, model = {"t5": (T5Config, T5ForConditionalGeneration), "umt5": (UMT5Config, UMT5ForConditionalGeneration)}[
        kind
    ]
    model = model(config(**{**T5, **settings})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_attention_bias" in name:
                weight.normal_(0, 2)
    return model


def without_forced_ends(semids: list[tuple]) -> list[tuple]:
    """Those after which something else is possible, or nothing at all: `generate` scores every end that it writes."""
    depth = max(map(len, semids))
    kept = [semid for semid in semids if len(semid) == depth or next_tokens(semid, {*semids}) != [-1]]
    return kept if len(kept) == len(semids) else without_forced_ends(kept)


@torch.no_grad()
def generated(model, ids, mask, semids: list[tuple], num_beams: int, allowed: list[set]) -> list[list]:
    """`(SemID, score)` lists, best first, of transformers' own beam search."""

    def follow(request: int, tokens: torch.Tensor) -> list[int]:
        prefix = tuple(token for token in tokens.tolist()[1:])
        catalogue = allowed[request]
        return [EOS if token == -1 else token for token in next_tokens(prefix, catalogue)] or [EOS]

    depth = max(map(len, semids))
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=depth,
        prefix_allowed_tokens_fn=follow,
        length_penalty=0.0,
        early_stopping=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    pairs = [
        (tuple(token for token in tokens[1:] if token not in (0, EOS)), score)
        for tokens, score in zip(output.sequences.tolist(), output.sequences_scores.tolist())
    ]
    lists = [pairs[row * num_beams : (row + 1) * num_beams] for row in range(len(ids))]
    return [[(semid, score) for semid, score in row if score > -1e8] for row in lists]


@pytest.mark.parametrize("filtered", [False, True], ids=["all", "filtered"])
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_generate_with_a_prefix_function(seed, ragged, filtered):
    model = t5(seed, feed_forward_proj=["relu", "gated-gelu", "relu"][seed])
    semids = random_semids(seed, rows=60, depth=4, ragged=ragged, width=5)
    semids = without_forced_ends(semids) if ragged else semids
    assert not ragged or len({len(semid) for semid in semids}) > 1
    num_beams = [1, 4, 9][seed] + 1
    ids, mask = prompts(LENGTHS, ["left", "right"][seed % 2])
    rng = np.random.default_rng(seed)
    masks = [rng.random(len(semids)) < 0.5 if filtered else np.ones(len(semids), bool) for _ in LENGTHS]
    trie = SemIDTrie(matrix(semids), EOS)
    output = tree_beam_search(model, ids, mask, trie, num_beams, masks=masks if filtered else None)
    assert search.way_of(model, ids.device).way == search.TREE
    # An end that a filter forces is scored by both: whether there is one is a question to the catalogue.
    allowed = [{semid for semid, kept in zip(semids, row) if kept} for row in masks]
    theirs = generated(model, ids, mask, semids, num_beams, allowed)
    for row in range(len(LENGTHS)):
        assert_same(found(output, row), theirs[row])


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_every_semid_has_the_score_of_a_plain_forward_pass(kind):
    """Ragged, with more beams than SemIDs, ends that are forced cost nothing."""
    model = t5(5, kind)
    semids = random_semids(7, rows=40, depth=3, ragged=True, width=6)
    ids, mask = prompts(LENGTHS)
    output = tree_beam_search(model, ids, mask, SemIDTrie(matrix(semids), EOS), 100)
    assert search.way_of(model, ids.device).way == search.TREE
    for row, length in enumerate(LENGTHS):
        wanted = {}
        for semid in semids:
            ends = [EOS] if next_tokens(semid, {*semids}) not in ([], [-1]) else []
            answer = torch.tensor([[*semid, *ends]])
            with torch.no_grad():
                logits = model(ids[[row], -length:], decoder_input_ids=torch.tensor([[0, *answer[0, :-1]]])).logits
            wanted[semid] = float(logits.log_softmax(-1).gather(-1, answer[..., None]).sum())
        best = sorted(wanted.items(), key=lambda pair: (-pair[1], pair[0]))
        ours = found(output, row)
        assert {semid for semid, _ in ours} == set(semids)
        np.testing.assert_allclose([score for _, score in ours], [score for _, score in best], atol=1e-4)
        np.testing.assert_allclose([score for _, score in ours], [wanted[semid] for semid, _ in ours], atol=1e-4)


def test_items_with_several_semids_and_beams_that_widen():
    model, semids = t5(3), random_semids(3, rows=50, depth=3)
    trie, ids, mask = SemIDTrie(matrix(semids), EOS), *prompts(LENGTHS)
    items = np.arange(len(semids)) // 2
    denied = [np.flatnonzero(items == 4), np.empty(0, np.int64), np.flatnonzero(items < 9)]
    # Four beams hold four items at most: searches for 2 and for 11 are run again, wider, for a part of the prompts.
    lists = search_items(model, ids, mask, trie, items, [2, 11, 11], 2, denied=denied)
    everything = search_items(model, ids, mask, trie, items, [100] * 3, 100, denied=denied)
    assert [len(one) for one in lists] == [2, 11, 11]
    for few, every, out in zip(lists, everything, denied):
        scores = {hit.item: hit.score for hit in every}
        assert len(scores) == len(set(items.tolist()) - set(items[out].tolist()))
        assert all(hit.score <= scores[hit.item] + 1e-4 for hit in few)
    with torch.no_grad():
        rows = torch.from_numpy(matrix(semids))
        read = torch.nn.functional.pad(rows[:, :-1], (1, 0))
        encoded = ids[[1]][:, mask[1].bool()].expand(len(rows), -1)
        logits = model(encoded, decoder_input_ids=read).logits.log_softmax(-1)
        by_row = logits.gather(-1, rows[..., None])[..., 0].sum(-1)
    for hit in everything[1]:
        assert hit.score == pytest.approx(float(by_row[items == hit.item].logsumexp(0)), abs=1e-4)


def test_a_prompt_is_encoded_once():
    model, semids = t5(1), random_semids(1, rows=50, depth=4)
    ids, mask = prompts(LENGTHS)
    trie = SemIDTrie(matrix(semids), EOS)
    tree_beam_search(model, ids, mask, trie, 2)  # the self-check is behind
    encoded = []
    model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    search_items(model, ids, mask, trie, np.zeros(len(semids), int), [1, 1, 1], 20)
    assert len(encoded) == 1


def test_learned_positions_go_through_generate(caplog):
    """BART counts the positions of beams: the self-check sees it, and `generate` takes over."""
    torch.manual_seed(0)
    sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=32, init_std=0.5, **sides, **ffn,
        pad_token_id=0, bos_token_id=0, eos_token_id=EOS, decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    model, semids = BartForConditionalGeneration(config).eval(), random_semids(2, rows=40, depth=3)
    ids, mask = prompts(LENGTHS)
    search.warn_of_generate.cache_clear()
    with caplog.at_level(logging.WARNING):
        output = tree_beam_search(model, ids, mask, SemIDTrie(matrix(semids), EOS), 5)
    assert any("the tree search" in record.getMessage() for record in caplog.records)
    for row, length in enumerate(LENGTHS):  # padding would move the encoder's positions
        (theirs,) = generated(model, ids[[row], -length:], mask[[row], -length:], semids, 5, [{*semids}])
        assert_same(found(output, row), theirs)


def test_an_encoder_decoder_that_does_not_say_how_it_begins_is_refused(monkeypatch):
    monkeypatch.setattr(self_check, "_of_keys", {})
    model = t5(decoder_start_token_id=None)
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="T5ForConditionalGeneration: its config has no decoder_start_token_id"):
        tree_beam_search(model, *prompts([3]), SemIDTrie(matrix(random_semids(0)), EOS), 2)
