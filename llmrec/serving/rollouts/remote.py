"""Rollouts by an engine that runs elsewhere (`python -m llmrec.serving.rollouts`), TRL's `vllm_mode: server`; the
processes of a run share it."""

import json
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from uuid import uuid4

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file

ROUTE = "/v1/rollouts"
_LONGEST_S = 600.0  # that an answer may take


class RemoteRollouts:
    """See `llmrec.rl.rollout.RolloutEngine`; the key is read from LLMREC_API_KEY.

    Args:
        fingerprint: of the Semantic IDs that the server should have.
        dtype: that its weights should have.
        timeout_s: how long it is waited for at first.

    Raises:
        ValueError: nobody answers there, or it serves something else.
    """

    def __init__(self, url: str, fingerprint: str, dtype: str, timeout_s: float):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"vllm_server_base_url: {url!r} is no address: write http://host:port")
        key = os.environ.get("LLMREC_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url, self.state = url.rstrip("/"), PartialState()
        until = time.monotonic() + timeout_s
        while True:
            try:
                there = self._ask("GET", ROUTE)
                break
            except URLError as error:
                if time.monotonic() > until:
                    raise ValueError(
                        f"vllm_server_base_url: nobody answers at {url} ({error}): start "
                        "`python -m llmrec.serving.rollouts FOLDER` there, or set vllm_mode: colocate"
                    ) from error
                time.sleep(1)
        for name, wanted in {"semid_fingerprint": fingerprint, "dtype": dtype}.items():
            if there[name] != wanted:
                raise ValueError(
                    f"vllm_server_base_url: {url} has {name} {there[name]}, this run {wanted}: start it with the "
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
        self.state.wait_for_everyone()

    def search(self, prompts: Sequence[Sequence[int]], size: int, normalize: str) -> tuple[np.ndarray, np.ndarray]:
        """Raises `ValueError` where the server has no answer, or other weights than it was sent."""
        asked = {"prompts": [*map(list, prompts)], "size": size, "normalize": normalize, "weights": self._name}
        found = self._ask("POST", ROUTE, json.dumps(asked).encode(), **{"Content-Type": "application/json"})
        return np.array(found["rows"], np.int64), np.array(found["scores"], np.float32)

    @property
    def _name(self) -> str:
        return f"{self.session}-{self.taken}"

    def _ask(self, method: str, path: str, body=None, **headers: str) -> dict:
        try:
            asked = Request(self.url + path, body, self.headers | headers, method=method)
            with urlopen(asked, timeout=_LONGEST_S) as answer:
                return json.load(answer)
        except HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise ValueError(f"{self.url} answers {error.code} to {method} {path}: {said}") from error
