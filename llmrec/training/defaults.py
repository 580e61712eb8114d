"""Settings of supervised fine-tuning that follow from the model, unless they are set."""

from llmrec.hub import local_folder, named_revision
from llmrec.models.provenance import Provenance


def sft_defaults(settings: dict) -> tuple[str, dict]:
    """`(why, settings)` for the base that `settings` name, as `llmrec.commands.run_script` takes them.

    A model from scratch learns everything from this catalogue: at a high rate, with dropout, and small as it is
    without recomputing activations. A pretrained one is to keep what it knows.
    """
    base = settings["model_name_or_path"]
    if not base:  # the run refuses that
        return "", {}
    if Provenance.load(local_folder(base, named_revision(settings.get("model_revision")))).from_scratch:
        chosen = {"learning_rate": 2e-3, "hidden_dropout": 0.5, "gradient_checkpointing": False}
        return f"{base} is a model from scratch", chosen
    rate = 5e-4 if settings["use_peft"] else 3e-4
    return f"{base} is a pretrained model", {"learning_rate": rate, "hidden_dropout": 0.0}
