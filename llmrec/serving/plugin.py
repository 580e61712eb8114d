"""What vLLM finds through entry points: the architectures of `recommend` mode, and routes for its own `vllm serve`."""

# architecture of a model folder -> class of llmrec.serving.pooling_model
ARCHITECTURES = {
    "Qwen2ForCausalLM": "Qwen2Recommender",
    "Qwen3ForCausalLM": "Qwen3Recommender",
    "LlamaForCausalLM": "LlamaRecommender",
    "MistralForCausalLM": "LlamaRecommender",
}


def register() -> None:
    """Registers the architectures, in every process of vLLM; more than once does no harm."""
    from vllm import ModelRegistry

    for name in set(ARCHITECTURES.values()):
        ModelRegistry.register_model(name, f"llmrec.serving.pooling_model:{name}")


def endpoint_plugin():
    """The HTTP front for `vllm serve`, where `VLLM_PLUGINS` names `llmrec`."""
    from llmrec.serving.vllm_routes import FrontRoutes

    return FrontRoutes()
