"""The one renderer: the same function writes the prompt for SFT, GRPO, evaluation and serving."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from llmrec.instructions.prompts import Prompt
from llmrec.instructions.tasks import TASKS, Catalogue

_MARK = "[[llmrec]]"  # no white space at its ends: templates trim messages


def item_of(entry: str | tuple[str, str]) -> str:
    """The item id of an entry of a history: an id or an (item id, behaviour) pair."""
    return entry if isinstance(entry, str) else entry[0]


class Renderer:
    """Rows → text.

    With a chat template the prompt is a conversation up to the assistant's turn (thinking switched off where the
    template knows the switch); without one it is the system text and the prompt, on lines of their own.

    Args:
        tokenizer: has the SemID tokens.
        catalogue (`Catalogue`): ids → Semantic IDs and titles.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue):
        self.tokenizer = tokenizer
        self.catalogue = catalogue
        self._frames: dict[str, str] = {}

    def prompt(self, prompt: Prompt, row: dict, template: int = 0) -> str:
        """The text before the answer. Only the columns that the task's templates name can change it.

        Args:
            row (`dict`): `history` (item ids) and `targets` (item ids; may be empty at inference), and, where
                interactions have kinds, `behaviours` and `target_behaviours` parallel to them.
            template (`int`): which wording; evaluation and serving use the first.
        """
        slots = self._slots(prompt, row)
        text = self._frame(prompt.system).replace(_MARK, prompt.templates[template].prompt.format(**slots).strip())
        if prompt.format == "stream" and row["history"]:
            text += slots["history"] + prompt.separator
        return text

    def completion(self, prompt: Prompt, row: dict, template: int = 0) -> str:
        """The answer. Words end with EOS; after a complete Semantic ID EOS is forced, so it is left out."""
        slots = self._slots(prompt, row)
        text = prompt.templates[template].completion.format(**slots)
        return text if TASKS[prompt.task].ends_with_item else text + self.tokenizer.eos_token

    def next_item_prompts(
        self,
        prompt: Prompt,
        histories: Sequence[Sequence[str | tuple[str, str]]],
        max_history: int,
        behaviours: Sequence[str] | None = None,
    ) -> list[str]:
        """Prompts that ask for the next item after each history (its last `max_history` items).

        Where the index has behaviours, a prompt ends with the token of the wanted one.

        Args:
            histories: item ids or (item id, behaviour) pairs; an id alone counts as the wanted behaviour.
            behaviours (*optional*): the wanted one for every history; by default the last one of the index.
        """
        index = self.catalogue.index
        if not index.behaviours:
            rows = [{"history": list(map(item_of, list(h)[-max_history:])), "targets": []} for h in histories]
            return [self.prompt(prompt, row) for row in rows]
        texts = []
        for history, wanted in zip(histories, behaviours or [index.behaviours[-1]] * len(histories), strict=True):
            shown = list(history)[-max_history:]
            kinds = [wanted if isinstance(entry, str) else entry[1] for entry in shown]
            row = {"history": list(map(item_of, shown)), "targets": [], "behaviours": kinds, "target_behaviours": []}
            texts.append(self.prompt(prompt, row) + index.behaviour_token(wanted))
        return texts

    def _slots(self, prompt: Prompt, row: dict) -> dict[str, str]:
        return TASKS[prompt.task].slots(self.catalogue.stream(prompt.semids), row, prompt.separator)

    def _frame(self, system: str) -> str:
        if system not in self._frames:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": _MARK})
            if self.tokenizer.chat_template:
                frame = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            else:
                frame = "\n".join(message["content"] for message in messages) + "\n"
            if frame.count(_MARK) != 1:
                raise ValueError("the tokenizer's chat template does not keep the user's message as it is")
            self._frames[system] = frame
        return self._frames[system]
