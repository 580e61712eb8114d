"""Begins or resumes a training run, after a look at what decides its result and what does not."""

import json
import os
from pathlib import Path

from accelerate import PartialState

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.files import fingerprint
from llmrec.instructions import Prompt, Texts
from llmrec.instructions.wishes import phrases
from llmrec.stages import RECORD, begin_stage, settings_of
from llmrec.training.resume import last_complete_checkpoint

# Where a run lives, how it reports and on what it runs: changing these is still the same run.
_VOLATILE = (
    "output_dir overwrite logging_dir run_name report_to project trackio_space_id trackio_bucket_id disable_tqdm "
    "log_level log_level_replica log_on_each_node logging_steps logging_strategy logging_first_step local_rank "
    "hub_token push_to_hub hub_model_id hub_strategy hub_private_repo hub_revision hub_always_push "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "ddp_backend ddp_timeout accelerator_config save_total_limit resume_from_checkpoint use_cpu"
).split()


def run_inputs(
    base: str, data: PreparedData, index: SemIDIndex, prompts: list[Prompt], texts: Texts | None = None
) -> dict[str, str]:
    """Fingerprints of what a run starts from: data, Semantic IDs, how the base was made, the prompts, the texts."""
    made = Path(base) / RECORD
    return {
        "data": data.fingerprint,
        "semids": index.fingerprint,
        "base": fingerprint(made.read_bytes()) if made.exists() else base,
        "prompts": fingerprint(json.dumps([*(prompt.to_dict() for prompt in prompts), phrases()])),
        **({} if texts is None else {"texts": fingerprint(texts.table)}),
    }


def begin_run(output_dir: str, *arguments, inputs: dict[str, str], overwrite: bool = False) -> tuple[str, str | None]:
    """`begin_stage` for a training run, on every process.

    Args:
        arguments: the dataclasses of the run (script, training, model arguments).
        inputs: fingerprints of data and Semantic IDs.

    Returns:
        `("done" | "new" | "resume", checkpoint)`: `checkpoint` is the one to resume from, or `None`.

    Raises:
        ValueError: other settings made what lies in `output_dir`, or the launched processes are no group.
    """
    settings = settings_of(*arguments, ignore=tuple(_VOLATILE)) | inputs
    state = PartialState()
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != state.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but they do not see each other: on a CPU set use_cpu: true and "
            "launch with recipes/accelerate/cpu2.yaml"
        )
    with state.main_process_first():
        found = begin_stage(output_dir, settings, overwrite and state.is_main_process)
    return found, last_complete_checkpoint(output_dir)
