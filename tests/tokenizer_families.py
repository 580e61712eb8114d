"""Tokenizers with the special and added tokens of families of models, small enough to be made on the spot."""

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "<start_of_turn>model\n"
)
SMOLLM2 = (
    "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <jupyter_script> "
    "<empty_output>"
).split()
QWEN3 = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
QWEN3_NORMAL = (  # added, but not special
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
).split()
LLAMA3_TOKENS = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|>".split()
LLAMA2_TOKENS = "<unk> <s> </s> [INST] [/INST] <<SYS>> <</SYS>>".split()
TEXT = ["The user chose these products, oldest first. Items in order of time: a red lamp, a cable and a cord."] * 40


def smollm2() -> PreTrainedTokenizerFast:
    return _fast(_byte_level(SMOLLM2), SMOLLM2, "<|endoftext|>", "<|im_end|>", CHATML)


def qwen3() -> PreTrainedTokenizerFast:
    raw = _byte_level(QWEN3)
    raw.normalizer = normalizers.NFC()
    raw.add_tokens([AddedToken(token, normalized=False) for token in QWEN3_NORMAL])
    return _fast(raw, QWEN3, None, "<|im_end|>", CHATML)


def llama3() -> PreTrainedTokenizerFast:
    raw = _byte_level(LLAMA3_TOKENS)
    raw.post_processor = _begins_with(raw, "<|begin_of_text|>")
    return _fast(raw, LLAMA3_TOKENS, "<|begin_of_text|>", "<|eot_id|>", LLAMA3)


def llama2(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """As converted from SentencePiece: spaces are letters, and a text begins with one; no template by default."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    letters = [*string.printable, *"▁é名古屋"]  # no letter of a test is unknown, as with all the bytes of a real one
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=LLAMA2_TOKENS, initial_alphabet=letters, show_progress=False
    )
    raw.train_from_iterator(TEXT, trainer)
    raw.post_processor = _begins_with(raw, "<s>")
    return _fast(raw, LLAMA2_TOKENS, "<s>", "</s>", chat_template)


def gemma() -> PreTrainedTokenizerFast:
    """Begins a text with BOS, has runs of white space among its added tokens, and takes no system message."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<unused0>"]
    raw = _byte_level(tokens)
    raw.add_tokens([AddedToken(token, normalized=False) for token in ("\n\n", "  ", "<table>", "</table>")])
    raw.post_processor = _begins_with(raw, "<bos>")
    return _fast(raw, tokens, "<bos>", "<end_of_turn>", GEMMA)


FAMILIES = {"smollm2": smollm2, "qwen3": qwen3, "llama3": llama3, "llama2": llama2, "gemma": gemma}


def _byte_level(special: list[str]) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXT, trainer)
    return raw


def _begins_with(raw: Tokenizer, token: str):
    return processors.TemplateProcessing(f"{token} $A", special_tokens=[(token, raw.token_to_id(token))])


def _fast(raw: Tokenizer, special: list[str], bos: str | None, eos: str, template: str | None):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, eos_token=eos, pad_token=eos, extra_special_tokens=special
    )
    tokenizer.chat_template = template
    return tokenizer
