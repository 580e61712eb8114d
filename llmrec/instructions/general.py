"""General language: plain questions to measure it by, and others to write conversations from that keep it."""

import re
from collections.abc import Callable, Iterable
from itertools import zip_longest

import numpy as np
import yaml

from llmrec.instructions.item_words import same_text
from llmrec.instructions.prompts import fill, prompts_folder

# A whole answer ends here; a number before the point is one of a list.
_END = re.compile(r"(?<=[^\d\s][.!?])(?=\s|$)")


def _read(name: str):
    return yaml.safe_load((prompts_folder() / "general" / f"{name}.yaml").read_text(encoding="utf-8"))


def plain_questions() -> list[str]:
    """The 40 plain questions of prompts/general/questions.yaml, on which nothing may be trained."""
    return _read("questions")["questions"]


def general_questions(count: int, seed: int = 0) -> list[str]:
    """`count` different questions, of each kind of prompts/general/topics.yaml (its forms x its topics) as many;
    none is one of `plain_questions`. Raises `ValueError` for more than there are."""
    asked, shuffle = plain_questions(), np.random.default_rng(seed).permutation
    kinds = [
        [fill(form, {"topic": topic}) for form in kind["forms"] for topic in kind["topics"]]
        for kind in _read("topics")
    ]
    kinds = [[one for one in kind if not any(same_text(one, plain) for plain in asked)] for kind in kinds]
    in_turn = zip_longest(*([kind[place] for place in shuffle(len(kind))] for kind in kinds))
    every = [one for turn in in_turn for one in turn if one]
    if count > len(every):
        raise ValueError(f"there are {len(every)} general questions, not {count}: add topics to prompts/general")
    return every[:count]


def conversations(
    questions: list[str], write: Callable[..., Iterable[str]], ended: Callable[[str], bool], seed: int = 0
) -> list[list[dict]]:
    """`messages` of one question and its answer each, as `write(questions, "", seeds)` gives it: all of it where it
    `ended`, else up to its last whole sentence; questions without one are left out."""
    order = sorted(range(len(questions)), key=lambda place: len(questions[place]))  # alike in length: little padding
    answers = write([questions[place] for place in order], "", [seed + place for place in order])
    talks: dict[int, list[dict]] = {}
    for place, answer in zip(order, answers, strict=True):
        ends = [len(answer)] if ended(answer) else [found.start() for found in _END.finditer(answer)]
        if ends and (whole := answer[: ends[-1]].strip()):
            turns = ("user", questions[place]), ("assistant", whole)
            talks[place] = [{"role": role, "content": content} for role, content in turns]
    return [talks[place] for place in sorted(talks)]
