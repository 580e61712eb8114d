"""What runs inside vLLM's processes: the models and the pooler of recommend mode, the logits processor of generate."""
