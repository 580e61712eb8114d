"""What `SemIDGRPOTrainer` builds on in TRL. A failure here: read the new trainer, then change ours and this file."""

import inspect

import trl
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from llmrec.rl import SemIDGRPOTrainer

LOG_PROBS = "self model input_ids attention_mask logits_to_keep batch_size compute_entropy compute_aux_loss".split()


def source(name: str) -> str:
    return inspect.getsource(getattr(GRPOTrainer, name))


def test_the_version_is_one_that_was_read():
    assert trl.__version__.split(".")[:2] == ["1", "16"]


def test_methods_that_are_replaced():
    signature = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies)
    assert list(signature.parameters)[: len(LOG_PROBS)] == LOG_PROBS
    assert list(inspect.signature(GRPOTrainer._prepare_inputs).parameters) == ["self", "generation_batch"]
    assert list(inspect.signature(GRPOTrainer._generate_and_score_completions).parameters) == ["self", "inputs"]
    for name in ("_get_per_token_logps_and_entropies", "_prepare_inputs", "_generate_and_score_completions"):
        assert name in vars(SemIDGRPOTrainer)


def test_rollouts_come_from_the_rollout_function():
    text = source("_generate")
    assert "self.rollout_func(prompts, self)" in text
    assert '{"prompt_ids", "completion_ids", "logprobs"}' in text and 'extra_fields.pop("env_mask", None)' in text


def test_scores_and_losses_ask_for_log_probabilities_by_the_replaced_method():
    for name in ("_generate_and_score_completions", "_compute_loss"):
        assert "self._get_per_token_logps_and_entropies(" in source(name)
    assert "if advantages.dim() == 1" in source("_compute_loss")  # advantages by token are taken as they are
    assert '"advantages": ' in source("_generate_and_score_completions")


def test_the_kl_is_weighted_where_the_loss_adds_it():
    text = source("_compute_loss")
    assert text.count("self.beta") == text.count("self.beta != 0.0") + text.count("self.beta * per_token_kl") == 4
    assert "_compute_loss" in vars(SemIDGRPOTrainer)


def test_micro_batches_are_held_as_the_replaced_method_holds_them():
    text = source("_prepare_inputs")
    assert "self._step % self.args.steps_per_generation" in text and "self._buffered_inputs is None" in text
    assert "shuffle_sequence_dict" in text  # why it is replaced
    assert list(inspect.signature(split_tensor_dict).parameters) == ["tensor_dict", "num_chunks"]
    assert "gather_deepspeed3_params" in inspect.signature(unwrap_model_for_generation).parameters
