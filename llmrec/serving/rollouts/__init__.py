"""Rollouts of reinforcement learning by vLLM: in the process that trains, or asked over HTTP."""

from llmrec.serving.rollouts.engine import start_rollouts

__all__ = ["start_rollouts"]
