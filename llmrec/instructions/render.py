"""The one renderer: the same function writes the prompt for SFT, GRPO, evaluation and serving."""

from collections.abc import Sequence
from itertools import cycle

from transformers import PreTrainedTokenizerBase

from llmrec.arguments import one_of
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.prompts import Prompt, Template
from llmrec.instructions.tasks import TASKS

_MARK = "[[llmrec{}]]"  # no white space at its ends: templates trim messages


def item_of(entry: str | tuple[str, str]) -> str:
    """The item id of an entry of a history: an id or an (item id, behaviour) pair."""
    return entry if isinstance(entry, str) else entry[0]


def _filled(text: str, slots: dict[str, str], prompt: Prompt) -> str:
    try:
        return text.format_map(slots)
    except KeyError as error:
        one_of(error.args[0], slots, f"prompt of task {prompt.task!r}: slot")
        raise


class Renderer:
    """Rows → text.

    With a chat template the prompt is a conversation up to the assistant's turn (thinking switched off, where the
    template knows the switch, unless the prompt is for it); without one it is the system text and the messages, on
    lines of their own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue):
        self.tokenizer = tokenizer
        self.catalogue = catalogue
        self._frames: dict[tuple, str] = {}

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
        task = TASKS[prompt.task]
        slots = task.slots(self.catalogue.view(prompt.semids), row, prompt.separator)
        text = self._frame(prompt.system, len(wording.turns), prompt.thinking)
        for number, turn in enumerate(wording.turns):
            text = text.replace(_MARK.format(number), _filled(turn, slots, prompt).strip())
        if prompt.format == "stream" and row["history"]:
            text += slots["history"] + prompt.separator
        answer = _filled(wording.completion, slots, prompt)
        return text, answer if task.ends_with_item else answer + self.tokenizer.eos_token

    def chat(self, messages: list[dict[str, str]]) -> tuple[str, str]:
        """`(prompt, answer)` of a conversation that ends with the assistant's turn."""
        return self._apply(messages[:-1]), messages[-1]["content"] + self.tokenizer.eos_token

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

    def _frame(self, system: str, turns: int, thinking: bool) -> str:
        key = system, turns, thinking
        if key not in self._frames:
            messages = [{"role": "system", "content": system}] if system else []
            roles = zip(range(turns), cycle(("user", "assistant")))
            messages += [{"role": role, "content": _MARK.format(number)} for number, role in roles]
            frame = self._apply(messages, thinking)
            if any(frame.count(_MARK.format(number)) != 1 for number in range(turns)):
                raise ValueError("the tokenizer's chat template does not keep the user's message as it is")
            if frame.rstrip().endswith("<think>"):
                raise ValueError(
                    "the tokenizer's chat template opens <think> by itself: give the tokenizer a chat template that "
                    "leaves the answer to the prompt's templates"
                )
            self._frames[key] = frame
        return self._frames[key]

    def _apply(self, messages: list[dict[str, str]], thinking: bool = False) -> str:
        if self.tokenizer.chat_template:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        return "\n".join(message["content"] for message in messages) + "\n"
