"""Free text from causal language models: a teacher's answers, tags, thoughts.

A checkpoint's own sampling defaults never apply. Of a catalogue's Semantic IDs whole ones are written, or none
(`llmrec.decoding.semid_states`). Sampled text follows from the seed of its row alone, so a row is written the same
beside any neighbours, and in a run that was killed and resumed.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase

from llmrec.decoding.head import unwrap
from llmrec.decoding.logits_processor import generate_as_told
from llmrec.decoding.semid_states import CatalogueTokens, SemIDRequest, SemIDStates
from llmrec.tokens import ControlTokens, conversation, fix_today, prompt_ids

logger = logging.getLogger(__name__)


class SeededSampling(LogitsProcessor):
    """Turns greedy search into sampling: the largest of the scores plus Gumbel noise is a sample of their softmax.

    Unlike torch's sampling, every row of the scores (float [N, V]) draws from a generator of its own, of its seed.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: sampling needs one above 0")
        self.seeds, self.temperature = seeds, temperature
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log()


class SemIDsInText(LogitsProcessor):
    """Lets a catalogue's trie rule over the tokens of Semantic IDs in free text.

    For one call of `generate` whose rows stay in their places: no beams.

    Args:
        prompts: token ids, without padding.
        room: tokens that each text may have.
        mode: `"inside"` or `"never"`, see `llmrec.decoding.semid_states`.
    """

    def __init__(self, tokens: CatalogueTokens, prompts: Sequence[Sequence[int]], room: int, mode: str = "inside"):
        size, device = len(prompts), tokens.trie.device
        self._states, self._slots = SemIDStates(size, device), torch.arange(size, device=device)
        of_each = [tokens] * size, [False] * size, [room] * size
        self._states.begin(range(size), [SemIDRequest(mode)] * size, [*map(tokens.prefix, prompts)], *of_each)
        self._catalogues, self._width = self._states.catalogues_of(range(size)), max(map(len, prompts))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Masks scores (float [N, V]) of the token after `input_ids` (int64 [N, T]); called once for every token."""
        states, slots, catalogues = self._states, self._slots, self._catalogues
        place = states.places_of(slots)
        if input_ids.shape[1] > self._width:
            place = states.read(place, slots, input_ids[:, -1], torch.ones_like(slots, dtype=torch.bool), catalogues)
            states.keep(slots, place)
        scores = scores.to(torch.float32, copy=True)
        states.constrain(scores, slots, place, catalogues)
        return scores


@torch.no_grad()
def continue_text(
    model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
    stop: str | None = None,
    batch_size: int = 16,
    catalogue: CatalogueTokens | None = None,
    semid: str = "inside",
) -> Iterator[str]:
    """What a model writes after every prompt, up to EOS, `stop` (included, if it was written) or `max_new_tokens`.

    Args:
        model: in evaluation mode, wrapped in DDP or PEFT or not.
        prompts: token ids, none of them empty.
        temperature: 0 is greedy; above it tokens are sampled from the whole vocabulary.
        seeds: of the rows; needed for sampling only.
        catalogue: whose Semantic IDs the text may hold, on the device of the model; `semid`: `"inside"`, whole ones;
            `"never"`, none.
    """
    eos = unwrap(model).generation_config.eos_token_id
    eos = eos if eos is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=eos,
        pad_token_id=pad,
        stop_strings=None if stop is None else [stop],
    )
    device = next(model.parameters()).device
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in batch], device=device)
        lengths = torch.tensor(list(map(len, batch)), device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        ruled = [] if catalogue is None else [SemIDsInText(catalogue, batch, max_new_tokens, semid)]
        noise = [SeededSampling(seeds[start : start + batch_size], temperature)] if temperature else []
        told = tokenizer if stop is not None else None
        output = generate_as_told(model, config, [*ruled, *noise], input_ids=ids, attention_mask=mask, tokenizer=told)
        for text in tokenizer.batch_decode(output[:, width:].tolist(), skip_special_tokens=True):
            yield text if stop is None else "".join(text.partition(stop)[:2])


def chat_writer(
    name: str, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, generate: Callable
) -> Callable[..., Iterator[str]]:
    """A chat model as a function `write(questions, system="", seeds=())` → its answers, without thoughts.

    An answer is what follows the last `</think>`; it is empty where the model was still thinking when it had to stop.

    Args:
        name: of the model, for a warning.
        generate: token ids of prompts, and seeds, to what the model writes after them.
    """

    fix_today(tokenizer)
    control = ControlTokens(tokenizer)

    def ask(question: str, system: str) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        return conversation(tokenizer, control.plain_messages(messages))

    thinks = ask("", "").rstrip().endswith("<think>")
    if thinks:
        logger.warning(
            "%s always thinks before it answers: its chat template opens <think>. Thoughts are cut off, and an answer "
            "is empty where max_new_tokens (%d) ends before the thought does: take a model whose template does not "
            "think, such as an Instruct one, or raise max_new_tokens to some thousands",
            name,
            max_new_tokens,
        )

    def write(questions: Sequence[str], system: str = "", seeds: Sequence[int] = ()) -> Iterator[str]:
        for answer in generate(prompt_ids(tokenizer, [ask(question, system) for question in questions]), seeds):
            _, closed, after = answer.rpartition("</think>")
            yield "" if thinks and not closed else re.sub(r"<think>.*", "", after, flags=re.DOTALL)

    return write
