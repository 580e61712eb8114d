"""The architectures of `recommend` mode: vLLM's decoders with a `BeamPooler`."""

from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from llmrec.serving.vllm import catalogues
from llmrec.serving.vllm.beam_pooler import BeamPooler


class _Recommender:
    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.parallel_config.world_size > 1:
            raise ValueError("recommend mode runs on one device: start one server for each")
        self.pooler = BeamPooler(self, catalogues.of(vllm_config), vllm_config.model_config.max_model_len)


class Qwen2Recommender(_Recommender, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


class Qwen3Recommender(_Recommender, Qwen3ForCausalLM):
    """Qwen3, dense."""


class LlamaRecommender(_Recommender, LlamaForCausalLM):
    """Llama, and what is built like it (Mistral without a sliding window, SmolLM2, ...)."""
