"""The one renderer: the same function writes the prompt for SFT, GRPO, evaluation and serving.

Wordings, separators, chat templates and Semantic IDs are ours; what else a task quotes is text, whatever it spells.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import cycle

from transformers import PreTrainedTokenizerBase

from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.prompts import Prompt, Template, pieces_of
from llmrec.instructions.tasks import TASKS, check_template
from llmrec.tokens import (
    OTHERS,
    OURS,
    SEMIDS,
    ControlTokens,
    EndingRuns,
    begun_with,
    conversation,
    fix_today,
    text_start,
    with_system,
)

_MARK = "[[llmrec{}]]"  # no white space at its ends: templates trim messages


def item_of(entry: str | tuple[str, str]) -> str:
    """The item id of an entry of a history: an id or an (item id, behaviour) pair."""
    return entry if isinstance(entry, str) else entry[0]


class Renderer:
    """Rows → text.

    With a chat template the prompt is a conversation up to the assistant's turn (thinking switched off, where the
    template knows the switch, unless the prompt is for it); without one it is the system text and the messages, on
    lines of their own, and `token_ids` begins them as the tokenizer begins a text (`bos=False`: it does not).

    A chat template that prints the day is fixed in place (`llmrec.tokens.fix_today`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, bos: bool = True):
        fix_today(tokenizer)
        self.tokenizer, self.catalogue = tokenizer, catalogue
        self.start = text_start(tokenizer) if bos and not tokenizer.chat_template else []
        self._control, self._marked = ControlTokens(tokenizer, catalogue.index.tokens), catalogue.marked()
        self._runs = EndingRuns(tokenizer, catalogue.index.tokens)
        self._frames: dict[tuple, list[str]] = {}
        self._checked: set[tuple[str, Template]] = set()

    def prompt(self, prompt: Prompt, row: dict, template: int | Template = 0) -> str:
        """The text before the answer. Only the history and the columns that the task declares can change it.

        A row has `history` and `targets` (item ids; targets may be empty at inference), what else the task speaks of,
        and, where interactions have kinds, `behaviours` and `target_behaviours` parallel to them.
        """
        return self.render(prompt, row, template)[0]

    def completion(self, prompt: Prompt, row: dict, template: int | Template = 0) -> str:
        """The answer. Words end with EOS; after a complete Semantic ID EOS is forced, so it is left out."""
        return self.render(prompt, row, template)[1]

    def render(self, prompt: Prompt, row: dict, template: int | Template = 0) -> tuple[str, str]:
        wording = prompt.templates[template] if isinstance(template, int) else template
        if (prompt.task, wording) not in self._checked:
            check_template(prompt, wording)
            self._checked.add((prompt.task, wording))
        task = TASKS[prompt.task]
        slots = task.slots(self._marked.view(prompt.semids), row, prompt.separator)
        pieces = self._frame(prompt.system, len(wording.turns), prompt.thinking)
        text, owners = pieces[0], OURS * len(pieces[0])
        for turn, after in zip(wording.turns, pieces[1:], strict=True):
            filled, theirs = self._filled(turn, slots)
            start, stop = len(filled) - len(filled.lstrip()), len(filled.rstrip())
            text, owners = text + filled[start:stop] + after, owners + theirs[start:stop] + OURS * len(after)
        if prompt.format == "stream" and row["history"]:
            text += self._filled("{history}", slots)[0] + prompt.separator
            owners = owners.ljust(len(text), OURS)
        answer, theirs = self._filled(wording.completion, slots)
        answer += "" if task.ends_with_item else self.tokenizer.eos_token
        return self._control.plain(text, owners), self._control.plain(answer, theirs.ljust(len(answer), OURS))

    def chat(self, messages: list[dict[str, str]]) -> tuple[str, str]:
        """`(prompt, answer)` of a conversation that ends with the assistant's turn."""
        *asked, answer = self.chat_messages(messages)
        return conversation(self.tokenizer, asked), answer["content"] + self.tokenizer.eos_token

    def chat_messages(self, messages: Sequence[dict]) -> list[dict]:
        """Messages of a chat as the model may read them: `plain`, and a system message where it has a place."""
        return with_system(self.tokenizer, self._special.plain_messages(messages))

    def plain(self, text: str) -> str:
        """A text of a chat or of the model, in which no control token is read as one; Semantic IDs name items."""
        return self._special.plain(text)

    @cached_property
    def _special(self) -> ControlTokens:
        return ControlTokens(self.tokenizer, but=self.catalogue.index.tokens)

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids of whole prompts; see `llmrec.tokens.prompt_ids`."""
        return begun_with(self.start, self.answer_ids(prompts))

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The token ids of answers, which continue a prompt."""
        return self._runs(answers)

    def next_item_prompts(
        self,
        prompt: Prompt,
        histories: Sequence[Sequence[str | tuple[str, str]]],
        max_history: int,
        behaviours: Sequence[str] | None = None,
        variation: int | None = None,
    ) -> list[str]:
        """Prompts that ask for the next item after each history (its last `max_history` items).

        `variation` is one of the ways in which an item tokenizer may write a history.

        Where the index has behaviours, a prompt ends with the token of the wanted one, by default the last of the
        index; histories are item ids or (item id, behaviour) pairs, and an id alone counts as the wanted behaviour.
        """
        index = self.catalogue.index
        if not index.behaviours:
            shown = [list(map(item_of, list(history)[-max_history:])) for history in histories]
            rows = [{"history": history, "targets": [], "variation": variation} for history in shown]
            return [self.prompt(prompt, row) for row in rows]
        texts = []
        for history, wanted in zip(histories, behaviours or [index.behaviours[-1]] * len(histories), strict=True):
            shown = list(history)[-max_history:]
            kinds = [wanted if isinstance(entry, str) else entry[1] for entry in shown]
            row = {"history": list(map(item_of, shown)), "targets": [], "behaviours": kinds, "target_behaviours": []}
            texts.append(self.prompt(prompt, row) + index.behaviour_token(wanted))
        return texts

    def _filled(self, wording: str, slots: dict[str, str]) -> tuple[str, str]:
        """A wording with its slots filled, and whose every character is."""
        words, owners = [], []
        for literal, name in pieces_of(wording):
            value = "" if name is None or slots[name] is None else str(slots[name])
            # A mark stands before and after each Semantic ID.
            for place, part in enumerate([literal, *value.split(self._marked.mark)]):
                words.append(part)
                owners.append((OTHERS if place % 2 else SEMIDS if place else OURS) * len(part))
        return "".join(words), "".join(owners)

    def _frame(self, system: str, turns: int, thinking: bool) -> list[str]:
        """What stands before, between and after the turns."""
        key = system, turns, thinking
        if key not in self._frames:
            marks = [_MARK.format(number) for number in range(turns)]
            messages = [{"role": "system", "content": system}] if system else []
            messages += [{"role": role, "content": mark} for role, mark in zip(cycle(("user", "assistant")), marks)]
            frame = conversation(self.tokenizer, messages, thinking)
            if re.findall(re.escape(_MARK).replace(r"\{\}", r"\d+"), frame) != marks:
                raise ValueError("the tokenizer's chat template does not keep the user's message as it is")
            if frame.rstrip().endswith("<think>"):
                raise ValueError(
                    "the tokenizer's chat template opens <think> by itself: give the tokenizer a chat template that "
                    "leaves the answer to the prompt's templates"
                )
            self._frames[key] = re.split("|".join(map(re.escape, marks)), frame)
        return self._frames[key]
