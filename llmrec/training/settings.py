"""What decides a training run's result, and what does not."""

from llmrec.stages import settings_of

# Where a run lives, how it reports and on what it runs: changing these is still the same run.
_VOLATILE = (
    "output_dir overwrite logging_dir run_name report_to project trackio_space_id trackio_bucket_id disable_tqdm "
    "log_level log_level_replica log_on_each_node logging_steps logging_strategy logging_first_step local_rank "
    "hub_token push_to_hub hub_model_id hub_strategy hub_private_repo hub_revision hub_always_push "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "ddp_backend ddp_timeout accelerator_config save_total_limit resume_from_checkpoint use_cpu"
).split()


def run_settings(*arguments, **inputs: str) -> dict:
    """Settings of a run for `begin_stage`: the arguments that decide its result, and fingerprints of its inputs."""
    return settings_of(*arguments, ignore=tuple(_VOLATILE)) | inputs
