"""LMIndexer's network (ICML 2024, arXiv:2310.07815): a T5 that reads a text and writes a code a level, and the losses
that teach it which codes."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import T5Config, T5Model

PAD = 0  # words are numbered from 1 on; the number after the last one masks a word


class LMIndexerNetwork(nn.Module):
    """Texts are int64 `[B, W]`, `PAD` behind the last word; codes of the levels before are int64 `[B, t]`."""

    def __init__(self, num_words: int, max_words: int, codebook_sizes, width: int, num_layers: int):
        super().__init__()
        self.mask = num_words + 1
        shape = {"d_model": width, "d_kv": width // 4, "num_heads": 4, "d_ff": 4 * width, "num_layers": num_layers}
        self.lm = T5Model(T5Config(vocab_size=num_words + 2, pad_token_id=PAD, decoder_start_token_id=PAD, **shape))
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(size, width)) for size in codebook_sizes)
        self.places = nn.Parameter(0.02 * torch.randn(max_words, width))
        self.reconstructor = nn.TransformerDecoderLayer(width, 4, 4 * width, batch_first=True)

    @property
    def words(self) -> nn.Embedding:
        return self.lm.shared

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """float `[B, t, width]` of codes."""
        parts = [self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])]
        return torch.stack(parts, 1) if parts else self.places.new_zeros(len(codes), 0, self.places.shape[1])

    def states(self, texts: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """float `[B, t + 1, width]`: the decoder's states, each of which picks the code of its level."""
        start = self.words.weight[PAD].expand(len(texts), 1, -1)
        inputs = torch.cat([start, self.vectors(codes)], 1)
        mask = (texts != PAD).long()
        return self.lm(input_ids=texts, attention_mask=mask, decoder_inputs_embeds=inputs).last_hidden_state

    def reconstruction(self, texts: torch.Tensor, said: torch.Tensor, share: float) -> torch.Tensor:
        """Cross-entropy of the `share` of words that are masked, given the others and what the codes say, float
        `[B, t, width]`."""
        masked = (torch.rand(texts.shape, device=texts.device) < share) & (texts != PAD)
        masked[:, 0] |= (texts[:, 0] != PAD) & ~masked.any(1)
        seen = self.words(texts.masked_fill(masked, self.mask)) + self.places[: texts.shape[1]]
        filled = self.reconstructor(seen, said, tgt_key_padding_mask=(texts == PAD) & texts.any(1, keepdim=True))
        return F.cross_entropy(filled[masked] @ self.words.weight.T, texts[masked])

    def losses(self, texts: torch.Tensor, codes: torch.Tensor, share: float, continuous: bool) -> dict:
        """The losses at level t = `codes.shape[1]`: `reconstruction`, `contrast` with items of the same codes so far,
        and from the second level on `commitment` to these. `continuous`: the state itself takes its code's place."""
        texts = texts[:, : int((texts != PAD).sum(1).max())]
        level, states = codes.shape[1], self.states(texts, codes)
        state, book = states[:, level], self.codebooks[level]
        said = state
        if not continuous:
            chances = (state @ book.T).softmax(-1)
            picked = F.one_hot(chances.argmax(-1), len(book)).to(chances.dtype)
            said = (picked + chances - chances.detach()) @ book
        losses = {
            "reconstruction": self.reconstruction(texts, torch.cat([self.vectors(codes), said[:, None]], 1), share)
        }
        unit = F.normalize(state, dim=-1)
        same_prefix = (codes[:, None] == codes).all(-1)
        near = (unit @ unit.T / 0.1).masked_fill(~same_prefix, -torch.inf)
        losses["contrast"] = F.cross_entropy(near, torch.arange(len(texts), device=texts.device))
        if level:
            each = [F.cross_entropy(states[:, one] @ self.codebooks[one].T, codes[:, one]) for one in range(level)]
            losses["commitment"] = sum(each)
        return losses

    @torch.no_grad()
    def write(self, texts: torch.Tensor, levels: int) -> torch.Tensor:
        """int64 `[B, levels]`: the codes, one after the other, each the best after those before it."""
        codes = texts.new_empty(len(texts), 0)
        for level in range(levels):
            logits = self.states(texts, codes)[:, level] @ self.codebooks[level].T
            codes = torch.cat([codes, logits.argmax(-1, keepdim=True)], 1)
        return codes
