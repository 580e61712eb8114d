"""Which families of `AutoModelForCausalLM` are searched exactly, and how: the table of docs/decoding.md.

For every family a tiny random model is made, and all SemIDs of a small catalogue are searched after two prompts of
unequal length, longer than every window; their scores are held against one forward pass of each SemID. A family runs
in a process of its own, which is given two minutes.

    python scripts/sweep_families.py llama mamba                   # prints what it finds
    python scripts/sweep_families.py --json sweep.json --write     # all families; goes on where it was stopped
"""

import argparse
import json
import logging
import multiprocessing
import warnings
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmrec.decoding import SemIDTrie, search, search_items
from llmrec.decoding.logits_processor import state_follows_beams
from llmrec.files import write_json

FAMILIES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "decoding.md"
BEGIN, END = "<!-- scripts/sweep_families.py --write -->\n", "<!-- end of the sweep -->\n"
VOCABULARY, SECONDS, EXACT = 128, 120, 2e-3
TREE, GENERATE = search.WAYS
UNCACHED = f"{GENERATE} without a cache"
OUTCOMES = [TREE, GENERATE, UNCACHED, "refused", "not made", "WRONG"]

# What configs call their sizes. Windows are shorter than the prompts.
_SIZES = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab",
    32: "hidden_size d_model n_embd dim embedding_size embed_dim word_embed_proj_dim lru_width embedding_dim "
    "hidden_size_global",
    48: "intermediate_size ffn_dim d_ff n_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dim_ff inner_dim "
    "shared_intermediate_size",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size kv_lora_rank q_lora_rank "
    "state_size mamba_d_state hidden_size_per_layer_input pronunciation_embed_dim shape_embed_dim chunk_size",
    4: "num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_attention_heads n_head num_heads n_heads decoder_attention_heads encoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads n_routed_experts num_local_experts num_experts "
    "moe_num_experts qk_rope_head_dim rotary_dim index_n_heads sliding_window attention_window_size window_size "
    "local_window_size attention_chunk_size linear_num_heads linear_num_value_heads",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts "
    "linear_num_key_heads",
    8: "head_dim d_head d_kv qk_nope_head_dim v_head_dim index_head_dim global_head_dim "
    "linear_head_dim linear_key_head_dim linear_value_head_dim",
    1: "n_group topk_group n_groups mamba_n_groups bos_token_id",
    256: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions",
}
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()} | {
    "pad_token_id": 0,
    "eos_token_id": 2,
}
# Keys and values of all heads are made of a latent
LATENT = {"num_key_value_heads": 4, "head_dim": 4, "qk_head_dim": 12}
# What has no size of its own by default
INDEXER = {"n_heads": 2, "kv_heads": 1, "head_dim": 8, "budget": 8, "compress_ratio": 4}
NEEDED = {"num_experts_per_tok": 2} | {f"indexer_{name}": size for name, size in INDEXER.items()}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
# Where sizes depend on each other, or a family has to be told that it is a causal language model
SPECIAL = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE | {"mrope_section": [1, 1, 2]}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64},
    "gemma3n_text": {"intermediate_size": [48] * 4, "num_kv_shared_layers": 2, "activation_sparsity_pattern": None},
    "gemma4_text": {"head_dim": 8, "global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16},
    "reformer": {
        "axial_pos_shape": (16, 16),
        "axial_pos_embds_dim": (16, 16),
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 4, "layers_block_type": HYBRID},
    "zamba2": {"n_mamba_heads": 4, "mamba_headdim": 16, "layers_block_type": HYBRID},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_model(family: str) -> PreTrainedModel:
    """A random model of a family, of some thousand weights where its config allows that."""
    torch.manual_seed(0)
    default = AutoConfig.for_model(family)
    model = AutoModelForCausalLM.from_config(_shrunk(default, SPECIAL.get(family, {})), dtype=torch.float32).eval()
    with torch.no_grad():  # logits that differ enough for a fault to show
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "conv" not in name and not name.endswith(("A_log", "mem_tokens")):
                weight.normal_(0, 0.2)
    return model


def _shrunk(config: PreTrainedConfig, special: dict) -> PreTrainedConfig:
    """The config of the same kind with small sizes, in its sub-configs too."""
    fields = vars(config)
    latent = LATENT if fields.get("kv_lora_rank") else {}
    given = {name: size for name, size in (SMALL | latent).items() if name in fields and fields[name] is not None}
    given |= {name: size for name, size in NEEDED.items() if name in fields}
    given |= {name: _shrunk(value, {}) for name, value in fields.items() if isinstance(value, PreTrainedConfig)}
    given |= {"is_decoder": True} if "is_decoder" in fields else {}
    return type(config)(**{name: value for name, value in (given | special).items() if value is not None})


@torch.no_grad()
def sweep(family: str) -> dict:
    """How a family is searched: `outcome` (of `OUTCOMES`), `why` it is not the first, and how far scores are `off`."""
    try:
        model = tiny_model(family)
        generator = torch.Generator().manual_seed(0)
        prompts = [torch.randint(3, 100, (length,), generator=generator) for length in (14, 9)]
        semids = torch.cartesian_prod(*(torch.arange(first, first + 3) for first in (100, 105, 110)))
        own = [_plain(model, prompt, semids) for prompt in prompts]
        if not all(bool(scores.isfinite().all()) for scores in own):
            raise ValueError("a forward pass gives logits that are not numbers")
    except Exception as error:
        return {"outcome": "not made", "why": _line(error)}
    ids, mask = torch.zeros(2, 14, dtype=torch.long), torch.zeros(2, 14, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    asked = model, ids, mask, SemIDTrie(semids.numpy(), 2), torch.arange(len(semids)), [len(semids) + 3] * 2, 4
    try:
        lists = search_items(*asked)
    except ValueError as error:
        outcome = "refused" if type(model).__name__ in str(error) else "WRONG"
        return {"outcome": outcome, "why": _line(error)}
    choice = search.way_of(model, ids.device)
    found = [{item.item: item.score for item in items} for items in lists]
    complete = all(len(scores) == len(semids) for scores in found)
    off = max(abs(float(own[row][item]) - score) for row, scores in enumerate(found) for item, score in scores.items())
    outcome = UNCACHED if choice.way == GENERATE and not state_follows_beams(model) else choice.way
    return {"outcome": outcome if complete and off < EXACT else "WRONG", "why": choice.why, "off": off}


def _plain(model: PreTrainedModel, prompt: torch.Tensor, semids: torch.Tensor) -> torch.Tensor:
    """float [27]: the score of every SemID, by a forward pass over it and its prompt."""
    rows = torch.cat([prompt.expand(len(semids), -1), semids], 1)
    steps = model(input_ids=rows, use_cache=False).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
    return steps.gather(-1, semids[..., None])[..., 0].sum(1)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _send(family: str, end) -> None:
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    end.send(sweep(family))


def sweep_apart(family: str) -> dict:
    """`sweep` in a process of its own: what a family leaves behind, or whether it comes back, is its own affair."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(family, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECONDS) else {"outcome": "WRONG", "why": f"no answer after {SECONDS} s"}
    except EOFError:
        return {"outcome": "WRONG", "why": "its process died"}
    finally:
        process.kill()
        process.join()


def table(results: dict[str, dict]) -> str:
    """The table of docs/decoding.md, a row an outcome."""
    lines = [f"Checked with transformers {transformers.__version__}: {len(results)} families.", ""]
    lines += ["| outcome | families | which |", "|---|---:|---|"]
    for outcome in OUTCOMES:
        names = sorted(family for family, result in results.items() if result["outcome"] == outcome)
        said = outcome in ("refused", "not made")
        named = [f"{name} ({_short(results[name]['why'])})" if said else name for name in names]
        lines += [f"| {outcome} | {len(names)} | {', '.join(named)} |"] if names else []
    return "\n".join(lines) + "\n"


def _short(why: str) -> str:
    """The last of what is said against a family."""
    return why.split("cannot be searched: ")[-1].split("; ")[-1].replace("|", "/")[:80].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=FAMILIES)
    parser.add_argument("--json", type=Path, help="keeps what was found; families in it are not run again")
    parser.add_argument("--write", action="store_true", help="writes the table into docs/decoding.md")
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for family in args.families:
        if family not in results:
            results[family] = sweep_apart(family)
            print(family, json.dumps(results[family]), flush=True)
            if args.json:
                write_json(args.json, results)
    if args.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + table(results) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
