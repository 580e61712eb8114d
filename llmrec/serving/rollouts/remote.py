"""Rollouts by an engine that runs elsewhere (`python -m llmrec.serving.rollouts`), TRL's `vllm_mode: server`; the
processes of a run share it."""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file

from llmrec.serving.http.settings import address_of

logger = logging.getLogger(__name__)
ROUTE = "/v1/rollouts"
_AT_ONCE_S = 10.0  # that a connection, and an answer without any work, may take
_LONGEST_S = 600.0  # that any other answer may take
_NO_ANSWER = (OSError, HTTPException)  # of the network, and of what is no server of HTTP


class RemoteRollouts:
    """See `llmrec.rl.rollout.RolloutEngine`; the key is read from LLMREC_API_KEY. Proxies of the environment are not
    asked.

    Args:
        fingerprint: of the Semantic IDs that the server should have.
        dtype: that its weights should have.
        timeout_s: how long it is waited for at first.

    Raises:
        ValueError: here, and in every call, with the address: nobody answers there (in time), or something else than
            such a server, or it refuses.
    """

    def __init__(self, url: str, fingerprint: str, dtype: str, timeout_s: float):
        self.address, self.url, self.state = address_of(url, "vllm_server_base_url"), url.rstrip("/"), PartialState()
        key = os.environ.get("LLMREC_API_KEY", "")
        if key != key.strip() or not (key.isascii() and key.isprintable()):
            raise ValueError("LLMREC_API_KEY has spaces around it, or characters that no header takes")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        there = self._first(timeout_s)
        for name, wanted in {"semid_fingerprint": fingerprint, "dtype": dtype}.items():
            if there.get(name) != wanted:
                raise ValueError(
                    f"vllm_server_base_url: {url} has {name} {there.get(name)}, this run {wanted}: start it with the "
                    f'folder of model_name_or_path, and --vllm \'{{"dtype": "{dtype}"}}\''
                )
        self.session, self.taken = broadcast_object_list([uuid4().hex])[0], 0

    def take(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.taken += 1
        if self.state.is_main_process:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "weights.safetensors"
                save_file({name: weight.to("cpu", copy=True).contiguous() for name, weight in weights}, file)
                with file.open("rb") as content:
                    length = {"Content-Length": str(file.stat().st_size)}
                    self._ask("PUT", f"{ROUTE}/weights/{self._name}", content, **length)

    def search(self, prompts: Sequence[Sequence[int]], size: int, normalize: str) -> tuple[np.ndarray, np.ndarray]:
        asked = {"prompts": [*map(list, prompts)], "size": size, "normalize": normalize, "weights": self._name}
        found = self._ask("POST", ROUTE, json.dumps(asked).encode(), **{"Content-Type": "application/json"})
        return np.array(found["rows"], np.int64), np.array(found["scores"], np.float32)

    @property
    def _name(self) -> str:
        return f"{self.session}-{self.taken}"

    def _first(self, timeout_s: float) -> dict:
        """What the server says of itself, as soon as it does."""
        until, waits = time.monotonic() + timeout_s, False
        while True:
            try:
                return self._read(f"GET {ROUTE}", *self._send("GET", ROUTE, None, _AT_ONCE_S))
            except _NO_ANSWER as error:
                if time.monotonic() > until:
                    raise ValueError(
                        f"vllm_server_base_url: nobody answers at {self.url} ({error!r}): start "
                        "`python -m llmrec.serving.rollouts FOLDER` there, or set vllm_mode: colocate"
                    ) from error
                if not waits and self.state.is_main_process:
                    logger.warning("%s does not answer yet (%r): waiting for up to %g s", self.url, error, timeout_s)
                waits = True
                time.sleep(1)

    def _ask(self, method: str, path: str, body=None, **headers: str) -> dict:
        try:
            answer = self._send(method, path, body, _LONGEST_S, **headers)
        except _NO_ANSWER as error:
            raise ValueError(
                f"{self.url} does not answer {method} {path} ({error!r}): look at what it wrote last, start "
                "`python -m llmrec.serving.rollouts FOLDER` there again, and then this run, which goes on"
            ) from error
        return self._read(f"{method} {path}", *answer)

    def _send(self, method: str, path: str, body, seconds: float, **headers: str) -> tuple[int, bytes]:
        address = self.address
        kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
        with closing(kind(address.hostname, address.port, timeout=_AT_ONCE_S, blocksize=2**20)) as connection:
            connection.connect()
            connection.sock.settimeout(seconds)
            connection.request(method, address.path.rstrip("/") + path, body, self.headers | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _read(self, asked: str, status: int, said: bytes) -> dict:
        text = said[:500].decode(errors="replace")
        if status != 200:
            key = " (the run sends the key in LLMREC_API_KEY)" if status == 401 else ""
            raise ValueError(f"{self.url} answers {status} to {asked}{key}: {text}")
        try:
            if isinstance(found := json.loads(said), dict):
                return found
        except ValueError:
            pass
        raise ValueError(f"{self.url} answers no object to {asked}: is it llmrec.serving.rollouts? {text}")
