"""How every recipe that trains ends."""

from collections.abc import Callable
from pathlib import Path

from transformers import Trainer
from trl import ModelConfig

from llmrec.catalogue.semids import SemIDIndex
from llmrec.models.card import write_model_card
from llmrec.models.folder import RecommenderConfig
from llmrec.stages import finish_stage
from llmrec.training.loading import reload_model
from llmrec.training.lora import push_final_model, save_final_model
from llmrec.training.plots import plot_training


def finish_run(
    trainer: Trainer,
    config: RecommenderConfig,
    index: SemIDIndex,
    script_args,
    model_args: ModelConfig,
    plot: Callable[[list[dict], Path], None] = plot_training,
    **results: float,
) -> dict[str, float]:
    """Writes one plain model, its plot and card, uploads them where asked to, and marks the stage as finished.

    Args:
        trainer: one of this package's or of `llmrec.rl`, after `train()`.
        script_args: the recipe's dataclass, which the card shows.
        plot: (log history, file) draws `training.png`.
        results: recorded beside the metrics.

    Returns:
        The validation metrics of the model that was written.
    """
    base, folder = model_args.model_name_or_path, trainer.args.output_dir
    metrics = save_final_model(trainer, lambda: reload_model(base, model_args))
    metrics = {name.removeprefix("eval_"): value for name, value in metrics.items() if "@" in name}
    if trainer.is_world_process_zero():
        plot(trainer.state.log_history, Path(folder) / "training.png")
        write_model_card(folder, config, index, metrics, script_args, trainer.args, base_model=base)
    push_final_model(trainer)
    if trainer.is_world_process_zero():
        finish_stage(folder, **results, **metrics)
    return metrics
