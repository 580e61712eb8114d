"""`CatalogueWorker`: what the front can ask of an engine's worker, as a `worker_extension_cls` of vLLM."""

import json
import threading

from llmrec.serving.vllm import catalogues


class CatalogueWorker:
    """Loads catalogue versions beside the requests that are running.

    vLLM mixes this into its worker, so names have a prefix.
    """

    def llmrec_load(self, record: str) -> None:
        """Begins to load the version of a record of the catalogue log (JSON); `llmrec_state` says how it went."""
        record = json.loads(record)
        states = self.__dict__.setdefault("_llmrec_states", {})
        states[record["number"]] = "loading"

        def load() -> None:
            try:
                self._llmrec_catalogues().load(record)
                states[record["number"]] = "loaded"
            except Exception as error:
                states[record["number"]] = f"{type(error).__name__}: {error}"

        threading.Thread(target=load, daemon=True).start()

    def llmrec_state(self, number: int) -> str:
        """`"loading"`, `"loaded"`, or why the version could not be loaded."""
        return self.__dict__.get("_llmrec_states", {}).get(number, "nobody asked for it")

    def llmrec_drop(self, number: int) -> None:
        """Forgets a version."""
        self._llmrec_catalogues().drop(number)

    def _llmrec_catalogues(self) -> catalogues.WorkerCatalogues:
        config = self.vllm_config
        return catalogues.of(config.model_config.model, config.additional_config.get("catalogue"))
