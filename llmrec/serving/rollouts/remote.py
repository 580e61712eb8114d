"""Rollouts by an engine that runs elsewhere (`python -m llmrec.serving.rollouts`), TRL's `vllm_mode: server`; the
processes of a run share it."""

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file

ROUTE = "/v1/rollouts"


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
        key = os.environ.get("LLMREC_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url, self.state = url, PartialState()
        self.http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(600, connect=10))
        until = time.monotonic() + timeout_s
        while True:
            try:
                there = self._ask("GET", ROUTE)
                break
            except httpx.TransportError as error:
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
                    self._ask("PUT", f"{ROUTE}/weights/{self._name}", content=content)
        self.state.wait_for_everyone()

    def search(self, prompts: Sequence[Sequence[int]], size: int, normalize: str) -> tuple[np.ndarray, np.ndarray]:
        """Raises `ValueError` where the server has no answer, or other weights than it was sent."""
        asked = {"prompts": [*map(list, prompts)], "size": size, "normalize": normalize, "weights": self._name}
        found = self._ask("POST", ROUTE, json=asked)
        return np.array(found["rows"], np.int64), np.array(found["scores"], np.float32)

    @property
    def _name(self) -> str:
        return f"{self.session}-{self.taken}"

    def _ask(self, method: str, path: str, **more) -> dict:
        answer = self.http.request(method, path, **more)
        if answer.is_error:
            raise ValueError(f"{self.url} answers {answer.status_code} to {method} {path}: {answer.text[:500]}")
        return answer.json()
