"""What the decoding tests compare with: a beam search in plain Python, one full forward pass per hypothesis."""

import math

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

EOS = 1
VOCABULARY = 64
FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def tiny_model(family: str = "qwen3", tied: bool = False, seed: int = 0, kv_heads: int = 2, **settings):
    """A random model whose logits differ enough for beams to matter."""
    torch.manual_seed(seed)
    config, model = FAMILIES[family]
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        **settings,
    }
    return model(config(**settings)).eval()


def with_adapters(tied: bool):
    """A model with LoRA and trained token rows that matter."""
    torch.manual_seed(1)
    tokens = list(range(18, 30))
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "up_proj"] + ([] if tied else ["lm_head"]),
        trainable_token_indices={"embed_tokens": tokens},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(tiny_model(tied=tied, seed=2), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "trainable_tokens_delta" in name:
                parameter.normal_(0, 0.3)
    return model


def random_semids(seed: int, rows: int = 40, depth: int = 3, ragged: bool = False, width: int = 8) -> list[tuple]:
    """Distinct SemIDs; tokens of all levels overlap on purpose. Ragged ones include prefixes of others."""
    rng = np.random.default_rng(seed)
    found = {
        tuple(rng.integers(20, 20 + width, rng.integers(1, depth + 1) if ragged else depth).tolist())
        for _ in range(rows)
    }
    found = sorted(found)
    rng.shuffle(found)
    return [tuple(map(int, semid)) for semid in found]


def matrix(semids: list[tuple]) -> np.ndarray:
    table = np.full((len(semids), max(map(len, semids))), -1, np.int64)
    for row, semid in enumerate(semids):
        table[row, : len(semid)] = semid
    return table


def prompts(lengths: list[int], side: str = "left", seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random prompts of tokens that are no SemID tokens, padded on a side."""
    rng = np.random.default_rng(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        columns = slice(0, length) if side == "right" else slice(max(lengths) - length, None)
        ids[row, columns] = torch.from_numpy(rng.integers(2, 20, length))
        mask[row, columns] = 1
    return ids, mask


def next_tokens(prefix: tuple, semids: set[tuple]) -> list[int]:
    """Tokens that continue a prefix, -1 where a SemID is over."""
    if prefix and prefix[-1] == -1:
        return []
    tokens = {semid[len(prefix)] for semid in semids if len(semid) > len(prefix) and semid[: len(prefix)] == prefix}
    return sorted(tokens | ({-1} if prefix in semids else set()))


@torch.no_grad()
def step_scores(
    model, prompt: list[int], prefixes: list[tuple], semids: set[tuple], normalize: str
) -> list[dict[int, float]]:
    """Log-probability of each next token after prefixes of one length: a full forward pass over prompt and prefix."""
    all_logits = model(torch.tensor([prompt + list(prefix) for prefix in prefixes])).logits[:, -1].double()
    steps = []
    for prefix, logits in zip(prefixes, all_logits):
        tokens = next_tokens(prefix, semids)
        chosen = logits[[EOS if token == -1 else token for token in tokens]]
        scores = chosen - (chosen if normalize == "catalogue" else logits).logsumexp(0)
        steps.append({-1: 0.0} if tokens == [-1] else dict(zip(tokens, scores.tolist())))
    return steps


def reference_search(
    model, prompt, semids: list[tuple], num_beams: int, normalize: str = "vocabulary", allowed: set | None = None
) -> list[tuple[tuple, float]]:
    """`(SemID, score)`, best first, with the semantics of transformers' beam search."""
    catalogue = set(semids)
    allowed = catalogue if allowed is None else allowed
    depth = max(map(len, semids))
    running, finished = [((), 0.0)], []
    for level in range(depth):
        candidates = []
        groups = {}  # a beam that is over stays shorter than the others
        for prefix, score in running:
            groups.setdefault(len(prefix), []).append((prefix, score))
        for group in groups.values():
            steps = step_scores(model, prompt, [prefix for prefix, _ in group], catalogue, normalize)
            for (prefix, score), following in zip(group, steps):
                for token, step in following.items():
                    new = prefix if token == -1 else (*prefix, token)
                    alive = new in allowed if token == -1 else any(semid[: len(new)] == new for semid in allowed)
                    if alive:
                        candidates.append((new, score + step, token == -1 or level == depth - 1))
        candidates.sort(key=lambda candidate: (-candidate[1], candidate[0]))
        finished += [(semid, score) for semid, score, over in candidates[:num_beams] if over]
        running = [(semid, score) for semid, score, over in candidates if not over][:num_beams]
    return sorted(finished, key=lambda found: (-found[1], found[0]))[:num_beams]


def exhaustive(model, prompt, semids: list[tuple], normalize: str = "vocabulary") -> dict[tuple, float]:
    """The score of every SemID."""
    catalogue, steps = set(semids), {}
    for length in range(max(map(len, semids)) + 1):
        prefixes = sorted({semid[:length] for semid in catalogue if len(semid) >= length})
        steps.update(zip(prefixes, step_scores(model, prompt, prefixes, catalogue, normalize)))
    return {
        semid: sum(steps[semid[:level]][semid[level]] for level in range(len(semid))) + steps[semid].get(-1, 0.0)
        for semid in catalogue
    }


def found(output, row: int) -> list[tuple[tuple, float]]:
    """One prompt of a `BeamOutput` in the form of `reference_search`."""
    return [
        (tuple(token for token in tokens if token >= 0), score)
        for tokens, score in zip(output.tokens[row].tolist(), output.scores[row].tolist())
        if score > -math.inf
    ]


def assert_same(ours: list[tuple[tuple, float]], theirs: list[tuple[tuple, float]], tolerance: float = 1e-4) -> None:
    assert [semid for semid, _ in ours] == [semid for semid, _ in theirs]
    np.testing.assert_allclose([score for _, score in ours], [score for _, score in theirs], atol=tolerance)
