"""General language: plain questions to measure it by, and others to write conversations from that keep it."""

import re
from collections.abc import Callable, Iterable

import numpy as np
import yaml

from llmrec.instructions.item_words import same_text
from llmrec.instructions.prompts import fill, prompts_folder

# A whole answer ends here; a number before the point is one of a list.
_END = re.compile(r"(?<=[^\d\s][.!?])(?=\s|$)")


def _read(name: str) -> dict:
    return yaml.safe_load((prompts_folder() / "general" / f"{name}.yaml").read_text(encoding="utf-8"))


def plain_questions() -> list[str]:
    """The 40 plain questions of prompts/general/questions.yaml, on which nothing may be trained."""
    return _read("questions")["questions"]


def general_questions(count: int, seed: int = 0) -> list[str]:
    """`count` different questions, drawn from every form x every topic of prompts/general/topics.yaml; none is one of
    `plain_questions`. Raises `ValueError` for more than there are."""
    said = _read("topics")
    every = [fill(form, {"topic": topic}) for form in said["forms"] for topic in said["topics"]]
    every = [one for one in every if not any(same_text(one, plain) for plain in plain_questions())]
    if count > len(every):
        raise ValueError(f"there are {len(every)} general questions, not {count}: add topics to prompts/general")
    return [every[place] for place in np.random.default_rng(seed).permutation(len(every))[:count]]


def conversations(questions: list[str], write: Callable[..., Iterable[str]], seed: int = 0) -> list[list[dict]]:
    """`messages` of one question and its answer each, as `write(questions, "", seeds)` gives it, up to its last whole
    sentence; questions without one are left out."""
    order = sorted(range(len(questions)), key=lambda place: len(questions[place]))  # alike in length: little padding
    answers = write([questions[place] for place in order], "", [seed + place for place in order])
    talks: dict[int, list[dict]] = {}
    for place, answer in zip(order, answers, strict=True):
        if ends := [found.start() for found in _END.finditer(answer)]:
            turns = ("user", questions[place]), ("assistant", answer[: ends[-1]].strip())
            talks[place] = [{"role": role, "content": content} for role, content in turns]
    return [talks[place] for place in sorted(talks)]
