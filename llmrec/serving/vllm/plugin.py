"""What every process of vLLM loads, through an entry point: the architectures of `recommend` mode."""

import ctypes
import os
import signal

FRONT = "LLMREC_FRONT_PID"  # set in the environment of a server's engines

# architecture of a model folder -> class of llmrec.serving.vllm.beam_pooler
ARCHITECTURES = {
    "Qwen2ForCausalLM": "Qwen2Recommender",
    "Qwen3ForCausalLM": "Qwen3Recommender",
    "LlamaForCausalLM": "LlamaRecommender",
    "MistralForCausalLM": "LlamaRecommender",
}


def register() -> None:
    """Registers the architectures, in every process of vLLM; more than once does no harm.

    The engines of a server also die with its front, even of SIGKILL: left over, they would hold the device's memory.
    """
    from vllm import ModelRegistry

    if os.environ.get(FRONT) == str(os.getppid()):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.environ[FRONT] != str(os.getppid()):  # it died a moment ago
            os.kill(os.getpid(), signal.SIGKILL)
    for name in set(ARCHITECTURES.values()):
        ModelRegistry.register_model(name, f"llmrec.serving.vllm.beam_pooler:{name}")
