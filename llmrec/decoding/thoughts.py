"""Thinking ahead (OneRec-Think, arXiv 2510.11639): the model writes a rationale in words, then the items are searched.

The rationale is free text: nothing constrains it, and it may hold Semantic IDs or not. What the search reads is not
the generated tokens but the block that the prompt's template makes of the rationale's text, tokenised as a training
row is. So a thought that ran out of tokens is closed like any other, and `<think>` needs no token of its own.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

RATIONALE, TARGET = "{rationale}", "{target}"


class ThoughtBlock(NamedTuple):
    """What stands before and after a rationale in the answers of a prompt: `"<think>\\n"`, `"\\n</think>\\n\\n"`."""

    opening: str
    closing: str

    @classmethod
    def of(cls, completion: str) -> "ThoughtBlock":
        """From the answer of a thinking prompt's template; `ValueError` unless it is a rationale in a block, and then
        the target."""
        opening, _, rest = completion.partition(RATIONALE)
        closing, _, after = rest.partition(TARGET)
        if RATIONALE not in completion or not rest.endswith(TARGET) or not closing.strip() or "{" in opening + closing:
            raise ValueError(
                "the completion of a thinking prompt should read like "
                f"'<think>\\n{RATIONALE}\\n</think>\\n\\n{TARGET}', not {completion!r}"
            )
        return cls(opening, closing)

    def text(self, rationale: str) -> str:
        """The answer before the target; `""` gives the empty block, which skips thinking."""
        return f"{self.opening}{rationale}{self.closing}"


class Thought(NamedTuple):
    """A rationale without the block around it, and whether the model closed it by itself."""

    text: str
    closed: bool


def write_thoughts(
    write: Callable[..., Iterable[str]],
    tokenizer,
    prompts: Sequence[Sequence[int]],
    block: ThoughtBlock,
    count: int,
    max_new_tokens: int,
    temperature: float,
    seed: int | Sequence[int] = 0,
) -> list[list[Thought]]:
    """`count` rationales for every prompt.

    Args:
        write: `(prompts, max_new_tokens, temperature, seeds, stop)` → texts, as `LLMRecommender.write`.
        prompts: token ids up to the answer.
        count: 1 is greedy; more are sampled from the whole vocabulary, at `temperature`.
        seed: or one for each prompt; samples follow from it, the prompt's tokens and their number, and from nothing
            else.
    """
    if count < 1 or max_new_tokens < 1:
        raise ValueError(f"thoughts ({count}) and max_thought_tokens ({max_new_tokens}) should be at least 1")
    if count > 1 and temperature <= 0:
        raise ValueError(f"thought_temperature is {temperature}: {count} thoughts are sampled, with one above 0")
    opening = tokenizer(block.opening, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbours in length share a batch
    rows = [[*prompts[i], *opening] for i in order for _ in range(count)]
    given = [seed] * len(prompts) if isinstance(seed, int) else seed
    seeds = [zlib.crc32(np.array([given[i], n, *prompts[i]], np.int64).tobytes()) for i in order for n in range(count)]
    stop = block.closing.strip()
    written = write(rows, max_new_tokens, 0.0 if count == 1 else temperature, seeds, stop)
    thoughts: list[list[Thought]] = [[] for _ in prompts]
    for place, text in enumerate(written):
        text, end, _ = text.partition(stop)
        thoughts[order[place // count]].append(Thought(text.strip(), bool(end)))
    return thoughts


def after_thoughts(lists: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """One list of the lists that were found after each of T thoughts.

    The score is logsumexp over thoughts - log T: an estimate of the item's log-probability with the thought averaged
    out, from below, since an item counts only after the thoughts whose beams hold it. OneRec-Think takes the maximum,
    which lets one odd thought outvote the others.

    Returns:
        (item, score) of every item of any list, by falling score, equal scores by item.
    """
    if len(lists) == 1:
        return list(lists[0])
    totals: dict[int, float] = {}
    for pairs in lists:
        for item, score in pairs:
            totals[item] = float(np.logaddexp(totals.get(item, -np.inf), score))
    return sorted(((item, total - np.log(len(lists))) for item, total in totals.items()), key=lambda p: (-p[1], p[0]))
