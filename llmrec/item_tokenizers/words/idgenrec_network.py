"""IDGenRec's two networks (SIGIR 2024, arXiv:2403.19021), both a T5 over words: one writes IDs of items, the other the
ID of the next item after those of a history; and diverse beam search, which gives an item several IDs to choose from.

Words are numbered from 0 on outside and from `FIRST` on inside; texts and IDs are int64, padded with -1.
"""

import torch
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

PAD, END, SEPARATOR, FIRST = 0, 1, 2, 3  # a T5's decoder begins with PAD


def word_t5(num_words: int, width: int, num_layers: int) -> T5ForConditionalGeneration:
    shape = {"d_model": width, "d_kv": width // 4, "num_heads": 4, "d_ff": 4 * width, "num_layers": num_layers}
    ids = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    return T5ForConditionalGeneration(T5Config(vocab_size=FIRST + num_words, **shape, **ids))


def _inside(words: torch.Tensor) -> torch.Tensor:
    """Words as the networks number them; a row without any is one separator."""
    inside = torch.where(words < 0, PAD, words + FIRST)
    inside[:, 0] = torch.where((words < 0).all(1), SEPARATOR, inside[:, 0])
    return inside


def answers(ids: torch.Tensor) -> torch.Tensor:
    """Labels int64 `[B, L + 1]` of IDs `[B, L]`: the words, the end, and -100."""
    labels = F.pad(torch.where(ids < 0, -100, ids + FIRST), (0, 1), value=-100)
    return labels.scatter(1, (ids >= 0).sum(1, keepdim=True), END)


def word_logits(writer: T5ForConditionalGeneration, texts: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """float `[B, L, V]`: what the generator would write at every place of the IDs `[B, L]` of texts `[B, W]` after the
    words before it, were it a word."""
    words = _inside(texts)
    before = F.pad(torch.where(ids < 0, PAD, ids + FIRST), (1, -1), value=PAD)
    return writer(input_ids=words, attention_mask=(words != PAD).long(), decoder_input_ids=before).logits[..., FIRST:]


def writing_loss(writer: T5ForConditionalGeneration, texts: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    words = _inside(texts)
    return writer(input_ids=words, attention_mask=(words != PAD).long(), labels=answers(ids)).loss


def next_loss(
    recommender: T5ForConditionalGeneration, ids: torch.Tensor, vectors: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the IDs of next items `[B, L]` after histories: their IDs `[B, T, L]`, padded, and the
    `vectors` float `[B, T, L, H]` that stand for their words. Every item ends with a separator."""
    count, length = ids.shape[:2]
    separator = recommender.shared.weight[SEPARATOR].expand(count, length, 1, -1)
    said = torch.cat([vectors, separator], 2).flatten(1, 2)
    there = torch.cat([ids >= 0, (ids >= 0).any(-1, keepdim=True)], -1).flatten(1)
    return recommender(inputs_embeds=said, attention_mask=there.long(), labels=answers(targets)).loss


def hard_vectors(recommender: T5ForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:
    """float `[..., L, H]`: the recommender's embeddings of the words of IDs."""
    return recommender.shared(torch.where(ids < 0, PAD, ids + FIRST))


def soft_vectors(recommender: T5ForConditionalGeneration, logits: torch.Tensor) -> torch.Tensor:
    """float `[..., L, H]`: the mean of the recommender's embeddings under what the generator would write."""
    return logits.softmax(-1) @ recommender.shared.weight[FIRST:]


@torch.no_grad()
def diverse_beams(
    writer: T5ForConditionalGeneration, texts: torch.Tensor, least: int, most: int, groups: int, penalty: float
) -> torch.Tensor:
    """int64 `[B, groups, most]`: IDs of `least` to `most` words, no word twice, the likeliest by word first.

    Diverse beam search (Vijayakumar et al. 2018) with one beam a group: at every place a group pays `penalty` for each
    group before it that took the same word there.
    """
    words = _inside(texts)
    mask = (words != PAD).long()
    states = writer.encoder(input_ids=words, attention_mask=mask).last_hidden_state
    states, mask = states.repeat_interleave(groups, 0), mask.repeat_interleave(groups, 0)
    read = {"encoder_outputs": (states,), "attention_mask": mask, "use_cache": True}
    newest = torch.full((len(texts), groups, 1), PAD, device=texts.device)
    written, past = newest[..., :0], None
    scores, over = torch.zeros(newest.shape[:2], device=texts.device), newest[..., 0] == END
    for place in range(most):
        output = writer(**read, decoder_input_ids=newest.flatten(0, 1), past_key_values=past)
        past, said = output.past_key_values, output.logits[:, -1].log_softmax(-1).unflatten(0, newest.shape[:2])
        said[..., [PAD, SEPARATOR]] = -torch.inf
        if place < least:
            said[..., END] = -torch.inf
        said = said.scatter(-1, written, -torch.inf)
        said[over] = -torch.inf
        said[..., END] = said[..., END].masked_fill(over, 0.0)
        taken, chosen = torch.zeros_like(said[:, 0]), []
        for group in range(groups):
            chosen.append((said[:, group] - penalty * taken).argmax(-1, keepdim=True))
            taken.scatter_add_(1, chosen[-1], (~over[:, group, None]).to(taken.dtype))
        newest = torch.stack(chosen, 1)
        scores, over = scores + said.gather(-1, newest)[..., 0], over | (newest[..., 0] == END)
        written = torch.cat([written, newest], -1)
    ids = torch.where(written >= FIRST, written - FIRST, -1)
    order = (scores / (ids >= 0).sum(-1)).argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order[..., None].expand_as(ids))
