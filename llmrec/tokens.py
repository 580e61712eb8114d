"""What a tokenizer makes of text: control tokens, the beginning of a text, conversations, the day.

Control tokens and Semantic IDs are ours to write. Where a text of a user or a catalogue spells one, a space is put
behind its first character, so that it is read as the letters that it is. All other texts stay as they are.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache
from itertools import pairwise

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase

from llmrec.arguments import one_of

logger = logging.getLogger(__name__)
ROLES = ("system", "developer", "user", "assistant", "tool")
# What chat templates print as today, on every day: the one that Llama 3.1's falls back on.
TODAY = date(2024, 7, 26)
_STRFTIME = re.compile(r"""\bstrftime_now\s*\(\s*(["'])([^"'\\]*)\1\s*\)""")
_OTHER_DAY = re.compile(r"\bstrftime_now\b(?!\s+is\s+(not\s+)?defined\b)")
_SPACES = re.compile(r"[\s▁]*")
_MARKUP = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)
OTHERS, OURS, SEMIDS = "012"  # whose a character is: SEMIDS are ours too, and begin and end no other token


class ControlTokens:
    """Finds and breaks the control tokens of a tokenizer: its special tokens, other added ones that look like markup
    (`<think>`), and `more`, such as the tokens of Semantic IDs; `but` are none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, more: Iterable[str] = (), but: Iterable[str] = ()):
        added = list(tokenizer.added_tokens_decoder.values())
        marked = [token.content for token in added if token.special or _MARKUP.fullmatch(token.content)]
        normalized = {token.content for token in added if token.normalized}
        left_out = {*but}
        self.tokens = [t for t in dict.fromkeys([*marked, *more]) if t.strip() and t not in left_out]
        # The library's own search for added tokens: the leftmost, the longest, in time linear in the text.
        self._finder = Tokenizer(WordLevel({"": 0}, unk_token=""))
        normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
        ends = {end for token in self.tokens for end in (token[0], token[-1])}
        self._ends = re.compile("[" + "".join(map(re.escape, sorted(ends))) + "]") if ends else re.compile(r"(?!)")
        if normalizer is not None and not normalized.isdisjoint(self.tokens):
            if normalizer.normalize_str("< >") == normalizer.normalize_str("<>"):
                raise ValueError("the tokenizer's normalizer drops spaces, so that no control token can be broken")
            self._finder.normalizer = normalizer  # other characters may be read as a token's, such as capitals
            self._ends = re.compile("")
        self._finder.add_tokens([AddedToken(token, normalized=token in normalized) for token in self.tokens])

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where control tokens stand in a text: [start, end) each."""
        found = self._finder.encode(text, add_special_tokens=False)
        places = [place for number, place in zip(found.ids, found.offsets) if number]
        # A normalizer that writes spaces as letters may count one before a token to it.
        return [(min(start + len(_SPACES.match(text, start, end)[0]), end - 1), end) for start, end in places]

    def plain(self, text: str, owners: str | None = None) -> str:
        """The text with every control token broken that others have a hand in.

        `owners` says for each character whose it is (`OTHERS`, `OURS`); by default all of it is others'. Raises
        `ValueError` for a control token of a single character, which cannot be broken.
        """
        owners = OTHERS * len(text) if owners is None else owners
        runs = re.finditer(f"{OURS}?{OTHERS}+{OURS}?", owners)  # a token may begin in a wording and end in a slot
        if not any(self._ends.search(text, *run.span()) for run in runs):
            return text
        while cuts := self._cuts(text, owners):
            parts = list(pairwise([0, *cuts, len(text)]))
            text = " ".join(text[start:end] for start, end in parts)
            owners = OTHERS.join(owners[start:end] for start, end in parts)
        return text

    def plain_messages(self, messages: Sequence[dict]) -> list[dict]:
        """Messages all of whose texts are `plain`, in whatever field; a content may be a list of parts, as OpenAI has
        it. Raises `ValueError` for a message that is no mapping, or of a role that is none of `ROLES`."""
        for message in messages:
            if not isinstance(message, Mapping):
                raise ValueError(f"message {message!r} is no mapping of role and content")
            one_of(str(message.get("role")), ROLES, "message role")
        return [{"content": None, **self._plain_value(message)} for message in messages]

    def _plain_value(self, value):
        if isinstance(value, str):
            return self.plain(value)
        if isinstance(value, Mapping):
            return {key: self._plain_value(one) for key, one in value.items()}
        return [self._plain_value(one) for one in value] if isinstance(value, (list, tuple)) else value

    def _cuts(self, text: str, owners: str) -> list[int]:
        cuts = []
        for start, end in self.find(text):
            if (place := owners.find(OTHERS, start, end)) >= 0:
                if end - start == 1:
                    raise ValueError(f"{text[start]!r} is a control token of the tokenizer: take it out of {text!r}")
                cuts.append(max(place, start + 1))
        return cuts


def words_without(tokenizer: PreTrainedTokenizerBase, new: set[str]) -> dict[str, int]:
    """The vocabulary of a tokenizer but for tokens `new`: what a model and the base that it was made from share."""
    return {word: number for word, number in tokenizer.get_vocab().items() if word not in new}


def text_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that the tokenizer puts in front of a text, such as BOS."""
    alone, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    places = (place for place in range(len(whole)) if whole[place : place + len(alone)] == alone)
    return whole[: next(places, 0)]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], start: Sequence[int] | None = None
) -> list[list[int]]:
    """The token ids of whole prompts, as `conversation` writes them.

    A chat template has written what a text begins with. Without one `start` comes first, by default `text_start`, but
    not twice.
    """
    if not len(texts):  # a tokenizer of transformers fails on an empty list
        return []
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    if start is None:
        start = [] if tokenizer.chat_template else text_start(tokenizer)
    return begun_with(start, rows)


def begun_with(start: Sequence[int], rows: list[list[int]]) -> list[list[int]]:
    return [row if row[: len(start)] == list(start) else [*start, *row] for row in rows]


class EndingRuns:
    """Token ids of texts many of which end in a run of certain tokens, such as a history in Semantic IDs.

    A tokenizer finds added tokens first and reads each piece between them on its own. So a run is looked up, and what
    stands before it is read once for all texts that begin with it. Where that does not hold for the tokens or the
    tokenizer, whole texts are read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]):
        self.tokenizer, self.first, self.ids = tokenizer, tokens[0][0] if len(tokens) else "", {}
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        # No other token reaches into a run, and each of a run begins where this character stands.
        apart = tokenizer.is_fast and all(self.first not in token[1:] for token in added)
        own = [added.get(token) for token in tokens]
        if apart and all(token is not None and token.content[0] == self.first and _exact(token) for token in own):
            self.ids = dict(zip(tokens, tokenizer.convert_tokens_to_ids(list(tokens))))

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        split = [self._split(text) for text in texts]
        heads = list(dict.fromkeys(head for head, _ in split if head))
        read = dict(zip(heads, self.tokenizer(heads, add_special_tokens=False)["input_ids"])) if heads else {}
        return [[*read.get(head, ()), *run] for head, run in split]

    def _split(self, text: str) -> tuple[str, list[int]]:
        """What stands before the run at the end of a text, and the ids of the run."""
        end, run = len(text), []
        while end and (start := text.rfind(self.first, 0, end)) >= 0 and text[start:end] in self.ids:
            run.append(self.ids[text[start:end]])
            end = start
        return text[:end], run[::-1]


def _exact(token: AddedToken) -> bool:
    return not (token.normalized or token.lstrip or token.rstrip or token.single_word)


def conversation(tokenizer: PreTrainedTokenizerBase, messages: list[dict], thinking: bool = False) -> str:
    """Messages (`role`, `content`) up to the assistant's turn, by the chat template or, without one, on lines of their
    own. Raises `ValueError` where the template refuses them."""
    if not tokenizer.chat_template:
        if not all(isinstance(message["content"], str) for message in messages):
            raise ValueError("without a chat template the content of a message is one text")
        return "\n".join(message["content"] for message in messages) + "\n"
    try:
        return _apply(tokenizer, with_system(tokenizer, messages), thinking)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the messages: {error}") from error


def with_system(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[dict]:
    """The same messages; where the chat template has no place for a system message, its text is at the head of the
    first user message."""
    heads = [message["role"] == "system" for message in messages[:1]]
    if not any(heads) or not tokenizer.chat_template or _takes_system(tokenizer, messages):
        return messages
    _say_once("the chat template has no place for a system message: its text begins the first user message instead")
    system, *rest = messages
    first = rest.pop(0) if rest and rest[0]["role"] == "user" else {"role": "user", "content": None}
    return [{**first, "content": _joined(system["content"], first["content"])}, *rest]


def _joined(system: str | list | None, text: str | list | None) -> str | list:
    """Two contents as one; a list of parts where one of them is a list."""
    contents = [content for content in (system, text) if content]
    if not any(isinstance(content, list) for content in contents):
        return "\n\n".join(contents).strip()
    if len(contents) == 2:
        contents.insert(1, "\n\n")
    return [part for one in contents for part in (one if isinstance(one, list) else [{"type": "text", "text": one}])]


def _takes_system(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> bool:
    """Whether another system text makes another text of the messages."""
    system, *rest = messages
    marks = [[{"type": "text", "text": mark}] if isinstance(system["content"], list) else mark for mark in "xy"]
    try:
        one, other = (_apply(tokenizer, [{**system, "content": mark}, *rest], False) for mark in marks)
    except TemplateError:
        return False
    return one != other


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict], thinking: bool) -> str:
    rest = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": thinking}
    said = [{**message, "content": message.get("content") or ""} for message in messages]  # and not the word None
    return tokenizer.apply_chat_template(said, **rest)


def fix_today(tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes `TODAY` into a chat template that would print the day, in place: a folder gives the same list on any day,
    in every program that reads its tokenizer. Raises `ValueError` where the template makes a date in another way."""

    def fixed(template: str) -> str:
        template = _STRFTIME.sub(lambda call: repr(TODAY.strftime(call[2])), template)
        if _OTHER_DAY.search(template):
            raise ValueError("the chat template prints the day in a format of its own: write a date into the template")
        return template

    template = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {name: fixed(one) for name, one in template.items()}
    elif template and "strftime_now" in template:
        tokenizer.chat_template = fixed(template)


@cache
def _say_once(message: str) -> None:
    logger.warning(message)
