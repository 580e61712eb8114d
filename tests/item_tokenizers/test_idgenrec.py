"""IDGenRec: rounds with the recommender teach the generator what to call items; its search and its losses by hand."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from llmrec.item_tokenizers import IDGenRec, build_semids
from llmrec.item_tokenizers.words.idgenrec import draw
from llmrec.item_tokenizers.words.idgenrec_network import (
    END,
    FIRST,
    PAD,
    SEPARATOR,
    answers,
    diverse_beams,
    hard_vectors,
    next_loss,
    soft_vectors,
    word_logits,
    word_t5,
    writing_loss,
)

SMALL = {
    "columns": ["title"],
    "min_words": 2,
    "max_words": 3,
    "max_text": 4,
    "groups": 4,
    "width": 32,
    "num_layers": 1,
    "max_length": 3,
    "learning_rate": 3e-3,
    "warmup_epochs": 60,
    "recommender_epochs": 20,
    "generator_epochs": 6,
}
NOTHING = np.empty((0, 1), np.float32)


def store(count: int = 80, users: int = 300, seed: int = 0) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """A title names a colour and a stuff, of which nothing follows, and a kind, each of which has four names: after an
    item of one kind comes one of the next."""
    rng = np.random.default_rng(seed)
    kind, name = rng.integers(4, size=count), rng.integers(4, size=count)
    colour, stuff = rng.integers(6, size=(2, count))
    titles = [f"colour{c} stuff{s} kind{k}of{n}" for c, s, k, n in zip(colour, stuff, kind, name)]
    ids = np.array([f"{seed}-{number:03d}" for number in range(count)])
    lists = [
        [str(rng.choice(ids[kind == (first + step) % 4])) for step in range(4)]
        for first in rng.integers(4, size=users)
    ]
    train = pa.table({"user_id": [str(user) for user in range(users)], "item_ids": lists})
    return pa.table({"item_id": ids, "title": titles}), train, kind


def test_diverse_beams_by_hand():
    torch.manual_seed(0)
    writer = word_t5(12, 16, 1).eval()
    writer.shared.weight.data.mul_(3)
    texts = torch.tensor([[3, 5, 7, -1], [0, -1, -1, -1], [-1, -1, -1, -1]])
    least, most, groups, penalty = 2, 5, 4, 1.5
    found = diverse_beams(writer, texts, least, most, groups, penalty)
    for text, choice in zip(texts, found.tolist()):
        words = torch.tensor([[SEPARATOR if (text < 0).all() else PAD if w < 0 else w + FIRST for w in text.tolist()]])
        words[:, 1:] = torch.where(text[1:] < 0, PAD, text[1:] + FIRST)
        beams = [([PAD], 0.0) for _ in range(groups)]
        for place in range(most):
            taken = Counter()
            for group, (written, score) in enumerate(beams):
                if written[-1] == END:
                    continue
                with torch.no_grad():
                    mask = (words != PAD).long()
                    logits = writer(input_ids=words, attention_mask=mask, decoder_input_ids=torch.tensor([written]))
                said = logits.logits[0, -1].log_softmax(-1)
                banned = {PAD, SEPARATOR, *written[1:], *([END] if place < least else [])}
                best = max(set(range(len(said))) - banned, key=lambda word: said[word].item() - penalty * taken[word])
                taken[best] += 1
                beams[group] = [*written, best], score + said[best].item()
        ids = [[word - FIRST for word in written if word >= FIRST] for written, _ in beams]
        order = sorted(range(groups), key=lambda group: -beams[group][1] / len(ids[group]))
        assert [[word for word in one if word >= 0] for one in choice] == [ids[group] for group in order]
        assert all(least <= len(one) <= most and len({*one}) == len(one) for one in ids)
    assert len({tuple(one) for one in found[0].tolist()}) > 1


def test_the_losses_are_those_of_the_paper():
    torch.manual_seed(0)
    writer, recommender = word_t5(12, 16, 1).eval(), word_t5(12, 16, 1).eval()
    texts, ids = torch.tensor([[3, 5, 7], [1, 2, -1]]), torch.tensor([[3, 5, -1], [1, -1, -1]])
    assert answers(ids).tolist() == [[3 + FIRST, 5 + FIRST, END, -100], [1 + FIRST, END, -100, -100]]
    # What the generator writes at a place follows the words before it, as in the loss that teaches it to write them.
    said = torch.stack([word_logits(writer, texts, ids)[0, 0], word_logits(writer, texts, ids)[0, 1]])
    logits = writer(input_ids=texts[:1] + FIRST, decoder_input_ids=torch.tensor([[PAD, 3 + FIRST, 5 + FIRST]])).logits[
        0
    ]
    assert torch.allclose(said, logits[:2, FIRST:], atol=1e-5)
    wanted = logits.log_softmax(-1)[[0, 1, 2], [3 + FIRST, 5 + FIRST, END]]
    assert torch.allclose(writing_loss(writer, texts[:1], ids[:1]), -wanted.mean(), atol=1e-5)
    # A generator that is certain of the IDs stands for them.
    history, target = ids[None], torch.tensor([[4, 6, 8]])
    certain = torch.nn.functional.one_hot(history.clamp(min=0), 12) * 1e4
    hard = next_loss(recommender, history, hard_vectors(recommender, history), target)
    soft = next_loss(recommender, history, soft_vectors(recommender, certain), target)
    assert torch.allclose(hard, soft, atol=1e-5)
    read = [3, 5, SEPARATOR - FIRST, 1, SEPARATOR - FIRST]  # words and separators, one after the other
    plain = recommender(input_ids=torch.tensor([read]) + FIRST, labels=answers(target)).loss
    assert abs(hard - plain) < 0.2, "but for the places that stand empty behind short IDs"
    # And the likelihood of the next item teaches it, while the recommender stands still.
    recommender.requires_grad_(False)
    next_loss(
        recommender, history, soft_vectors(recommender, word_logits(writer, texts, ids))[None], target
    ).backward()
    assert writer.encoder.block[0].layer[0].SelfAttention.q.weight.grad.abs().sum() > 0
    assert recommender.shared.weight.grad is None


def test_a_row_has_one_next_item_and_all_before_it():
    windows = torch.tensor([[5, 6, 7, 8], [1, 2, -1, -1]]).repeat(200, 1)
    before, target = draw(windows)
    seen = {(tuple(row), one) for row, one in zip(before.tolist(), target.tolist())}
    assert seen == {((5, -1, -1), 6), ((5, 6, -1), 7), ((5, 6, 7), 8), ((1, -1, -1), 2)}


@pytest.fixture(scope="module")
def made():
    items, train, kind = store()
    return {rounds: IDGenRec(**SMALL, rounds=rounds).fit(NOTHING, items, train) for rounds in (0, 3)}, items, kind


def test_the_rounds_teach_it_to_say_what_tells_the_next_item(made):
    """Keywords are as good as any other to say which item is meant, so it begins with what tells nothing."""
    tokenizers, items, kind = made
    says_kind, begins_with_kind = [], []
    for tokenizer in tokenizers.values():
        codes = tokenizer.encode(NOTHING, items)
        words = [[tokenizer.vocabulary[code] for code in row if code >= 0] for row in codes]
        says_kind.append(np.mean([any(word.startswith(f"kind{k}of") for word in row) for row, k in zip(words, kind)]))
        begins_with_kind.append(normalized_mutual_info_score(kind, codes[:, 0]))
    assert says_kind[1] > says_kind[0] + 0.08 and begins_with_kind[1] > begins_with_kind[0] + 0.08
    rounds = tokenizers[3].history
    assert len(rounds) == 3 and tokenizers[0].history == [] and rounds[2]["recommender"] < rounds[0]["recommender"]


def test_ids_are_distinct_and_read_again(made, tmp_path):
    tokenizer, items, _ = made[0][3], *made[1:]
    index = build_semids(items["item_id"].to_pylist(), np.zeros((80, 1), np.float32), tokenizer, items=items)
    assert index.info["collisions_after"]["colliding_items"] == 0
    new, _, _ = store(20, 5, seed=3)
    codes = tokenizer.encode(NOTHING, new)
    assert (codes[:, :2] >= 0).all()
    tokenizer.save_pretrained(tmp_path)
    again = IDGenRec.from_pretrained(tmp_path)
    assert (again.encode(NOTHING, new) == codes).all() and again.history == tokenizer.history


def test_what_it_refuses():
    items, train, _ = store(30, 10)
    with pytest.raises(ValueError, match="none of the text columns"):
        IDGenRec(**SMALL).fit(NOTHING, items.select(["item_id"]), train)
    with pytest.raises(ValueError, match="too few for IDs of max_words=3 in groups=60"):
        IDGenRec(**SMALL | {"groups": 60}).fit(NOTHING, items, train)
    with pytest.raises(ValueError, match="'idgenrec' needs training sequences of two or more items"):
        IDGenRec(**SMALL).fit(NOTHING, items, train.slice(0, 0))
    with pytest.raises(ValueError, match="needs train"):
        IDGenRec(**SMALL).fit(NOTHING, items)
    for wrong, said in (
        ({"width": 10}, "width=10 must be a multiple of 4"),
        ({"min_words": 5, "max_words": 4}, "1 <= min_words <= max_words"),
        ({"groups": 0}, "groups is 0"),
        ({"penalty": -1.0}, "penalty is -1.0"),
        ({"rounds": -1}, "rounds is -1"),
    ):
        with pytest.raises(ValueError, match=said):
            IDGenRec(**wrong)
