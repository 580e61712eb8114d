"""`Settings`: what the operator of a server chooses."""

import errno
import os
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self
from urllib.parse import SplitResult, urlsplit

from llmrec.serving.http.schemas import LARGEST_BATCH

_ADMIN = "/v1/catalogue"
_RECORDS = "/v1/catalogue/records"  # whoever follows holds up acknowledgements
_PAGES = ("/docs", "/openapi.json", "/metrics")


@dataclass(frozen=True)
class Settings:
    """How the front answers.

    Args:
        model: the name that responses and `/v1/models` show.
        api_key: `Authorization: Bearer <key>` of every route under `/v1`; `None` asks for none.
        admin_key: of routes that change the catalogue, and it opens all others. Beside an `api_key` without an
            `admin_key` nobody can change the catalogue.
        no_keys: other machines may reach a server that asks for no key (`check_host`).
        closed: `/docs`, `/openapi.json` and `/metrics` ask for a key, too: the admin's where there is one.
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
        follow: the URL of the server whose catalogue this one follows; changes are made there.
        never_stale: of one that follows: it answers nothing where it was cut off for so long that its catalogue may be
            older than an acknowledged one.
        drain_s: how long a server that was told to stop (SIGTERM) goes on, while `/ready` says that it leaves.

    Raises:
        ValueError: a limit below its least, or keys that are empty, equal, or contradict `no_keys` or `closed`; a
            `follow` that is no URL, or `never_stale` without it.
    """

    model: str
    api_key: str | None = None
    admin_key: str | None = None
    no_keys: bool = False
    closed: bool = False
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
    follow: str | None = None
    never_stale: bool = False
    drain_s: float = 0.0

    def __post_init__(self):
        keys = {"LLMREC_API_KEY": self.api_key, "LLMREC_ADMIN_KEY": self.admin_key}
        given = [key for key in keys.values() if key is not None]
        for name, key in keys.items():
            if key is not None and (not key or key != key.strip()):
                raise ValueError(f"{name} is empty, or has spaces around it: give a key, or unset it for none")
        if len(given) != len({*given}):
            raise ValueError(
                "LLMREC_API_KEY and LLMREC_ADMIN_KEY are equal: whoever may ask could change the catalogue"
            )
        if self.no_keys and given:
            raise ValueError("no_keys beside a key: leave it out, or unset LLMREC_API_KEY and LLMREC_ADMIN_KEY")
        if self.closed and not given:
            raise ValueError(
                "closed needs a key that opens /docs and /metrics: set LLMREC_ADMIN_KEY or LLMREC_API_KEY"
            )
        for name, value in vars(self).items():
            least = 0 if name == "max_queue" else 1
            if name.startswith("max_") and value is not None and value < least:
                raise ValueError(f"{name} is {value}, it should be at least {least}")
        if self.max_k > self.max_beams:
            raise ValueError(f"max_k is {self.max_k}, more than max_beams={self.max_beams}: a search is as wide as k")
        if self.max_batch > LARGEST_BATCH:
            raise ValueError(f"max_batch is {self.max_batch}, it should be at most {LARGEST_BATCH}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}, it should be more than 0")
        if not self.drain_s >= 0:
            raise ValueError(f"drain_s is {self.drain_s}, it should be at least 0")
        if self.follow is not None:
            address_of(self.follow, "follow")
        if self.never_stale and self.follow is None:
            raise ValueError("never_stale is for a server that follows another one: give follow too, or leave it out")

    @classmethod
    def of_environment(cls, model: str, **settings) -> Self:
        """With the keys LLMREC_API_KEY and LLMREC_ADMIN_KEY, where they are set."""
        keys = {name: os.environ.get(f"LLMREC_{name.upper()}") for name in ("api_key", "admin_key")}
        return cls(model, **keys, **settings)

    def check_host(self, host: str | None) -> None:
        """Raises `ValueError` where a server on this host would answer other machines without a key."""
        if self.api_key is not None or self.no_keys or _is_loopback(host):
            return
        raise ValueError(
            f"host {host or '0.0.0.0'} can be reached from other machines, and nothing asks for a key: set "
            "LLMREC_API_KEY (and LLMREC_ADMIN_KEY for changes of the catalogue), listen on 127.0.0.1, or say --no_keys"
        )

    def keys_of(self, method: str, path: str) -> list[str] | None:
        """The keys that open a route: `None` where it is open to all, an empty list where it is closed to all."""
        keys = [key for key in (self.api_key, self.admin_key) if key is not None]
        if path.startswith(_ADMIN) and (method == "POST" or path == _RECORDS):
            return [self.admin_key] if self.admin_key is not None else [] if keys else None
        if path.startswith(_PAGES):
            return keys[-1:] if self.closed else None
        return keys if path.startswith("/v1/") and self.api_key is not None else None

    def body_limit(self, path: str) -> int:
        return self.max_catalogue_bytes if path == _ADMIN else self.max_body_bytes


def address_of(url: str, name: str) -> SplitResult:
    """Of a server; raises `ValueError`, beginning with `name`, for what is no such URL."""
    try:
        address = urlsplit(url)
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return address
    except ValueError:
        pass
    raise ValueError(f"{name}: {url!r} is no address: write http://host:port")


def check_port(host: str | None, port: int) -> None:
    """Raises `ValueError` where no server can listen there, before an engine takes its time to start."""
    for family, kind, _, _, address in _addresses(host, port):
        with socket.socket(family, kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(address)
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    raise ValueError(f"port {port}: {error.strerror.lower()}: choose another --port") from error


def _addresses(host: str | None, port: int = 0) -> list[tuple]:
    try:
        return socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ValueError(f"host {host!r} is no name or address: {error}") from error


def _is_loopback(host: str | None) -> bool:
    found = {entry[4][0] for entry in _addresses(host)}
    return all(ip_address(address.partition("%")[0]).is_loopback for address in found)
