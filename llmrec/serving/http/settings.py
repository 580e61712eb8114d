"""`Settings`: what the operator of a server chooses."""

import os
from dataclasses import dataclass
from typing import Self

_ADMIN = "/v1/catalogue"


@dataclass(frozen=True)
class Settings:
    """How the front answers.

    Args:
        model: the name that responses and `/v1/models` show.
        api_key: `Authorization: Bearer <key>` of every route under `/v1`; `None` asks for none.
        admin_key: of routes that change the catalogue; by default `api_key`. It opens all others.
        max_body_bytes, max_catalogue_bytes: the largest body of a request, and of a change of the catalogue.
        max_history: the longest history; the model reads its newest items, as its folder says.
        max_prompt_tokens: the longest chat or task prompt; what the engine has room for.
        max_batch: requests in a batch, which takes one place in the queue.
        max_concurrent: searches that run at a time, each in a thread that waits for the engine; of chats and
            completions as many again.
        max_queue: requests that wait beside them; one more is answered 429.
        timeout_s: a recommendation that has waited and searched for longer is answered 503, and so is a chat that has
            waited for longer; one that has begun is written to its end.
        recommend: whether there are routes that recommend; without an engine for it there should be none.
        log_histories: whether the log repeats what requests ask. By default it holds no history, title or prompt.

    Raises:
        ValueError: a limit below its least, or a key that is empty.
    """

    model: str
    api_key: str | None = None
    admin_key: str | None = None
    max_body_bytes: int = 2**20
    max_catalogue_bytes: int = 2**25
    max_k: int = 200
    max_beams: int = 512
    max_history: int = 1000
    max_prompt_tokens: int | None = None
    max_batch: int = 128
    max_concurrent: int = 64
    max_queue: int = 256
    timeout_s: float = 30.0
    recommend: bool = True
    log_histories: bool = False

    def __post_init__(self):
        for name in ("api_key", "admin_key"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty: give one, or None for none")
        for name, value in vars(self).items():
            least = 0 if name == "max_queue" else 1
            if name.startswith("max_") and value is not None and value < least:
                raise ValueError(f"{name} is {value}, it should be at least {least}")
        if self.max_k > self.max_beams:
            raise ValueError(f"max_k is {self.max_k}, more than max_beams={self.max_beams}: a search is as wide as k")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s is {self.timeout_s}, it should be more than 0")

    @classmethod
    def of_environment(cls, model: str, **settings) -> Self:
        """With the keys LLMREC_API_KEY and LLMREC_ADMIN_KEY, where they are set."""
        keys = {name: os.environ.get(f"LLMREC_{name.upper()}") or None for name in ("api_key", "admin_key")}
        return cls(model, **keys, **settings)

    def keys_of(self, method: str, path: str) -> list[str]:
        """The keys that open a route; none where it is open to all."""
        keys = [key for key in (self.api_key, self.admin_key) if key is not None]
        if method == "POST" and path.startswith(_ADMIN):
            return keys[-1:]
        return keys if path.startswith("/v1/") and self.api_key is not None else []

    def body_limit(self, path: str) -> int:
        return self.max_catalogue_bytes if path == _ADMIN else self.max_body_bytes
