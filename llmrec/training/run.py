"""How every recipe that trains begins and ends: what a run starts from, whether it goes on, and what it writes."""

import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import PartialState
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput
from trl import ModelConfig

from llmrec.arguments import at_least
from llmrec.catalogue.report_parts import draw_lines
from llmrec.data import PreparedData
from llmrec.features.network_training import CHECKPOINT, learning_curve
from llmrec.files import check_whole, fingerprint
from llmrec.hub import local_folder, named_revision
from llmrec.instructions import Prompt, Texts
from llmrec.instructions.prompts import composed
from llmrec.instructions.wishes import phrases
from llmrec.models.card import write_card
from llmrec.models.folder import ITEM_TOKENIZER, RecommenderConfig, load_parts, write_sidecars
from llmrec.models.provenance import Provenance
from llmrec.models.weights import load_tokenizer
from llmrec.recommenders import LLMRecommender
from llmrec.stages import (
    begin_stage,
    finish_stage,
    has_optimizer,
    last_complete_checkpoint,
    model_content,
    settings_of,
)
from llmrec.training.loading import load_base, reload_base
from llmrec.training.lora import save_final_model
from llmrec.training.sharding import sharded

# Where a run lives, how it reports and on what it runs: changing these is still the same run.
_VOLATILE = tuple(
    "output_dir overwrite logging_dir run_name report_to project trackio_space_id trackio_bucket_id disable_tqdm "
    "log_level log_level_replica log_on_each_node logging_steps logging_strategy logging_first_step local_rank "
    "hub_token push_to_hub hub_model_id hub_strategy hub_private_repo hub_revision hub_always_push "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "vllm_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_gpu_memory_utilization "
    "ddp_backend ddp_timeout accelerator_config save_total_limit resume_from_checkpoint use_cpu".split()
)
# The least that fields of every trainer can be; 0.0: any number from 0 on.
_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("num_train_epochs", "learning_rate", "weight_decay", "max_grad_norm"), 0.0),
}
# What the card shows of a trainer's settings; of ours it shows those that differ from their defaults.
_SHOWN = (
    "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps weight_decay "
    "lr_scheduler_type warmup_steps max_grad_norm bf16 seed"
).split()
_LENGTHS = ("max_steps", "num_train_epochs")  # the first where it is above 0, as transformers has it
_FACTS = ("tasks", "rewards")  # of a stage; other settings of ours are beside it
PANELS = {"loss": ("loss", "eval_loss"), "ranking on the validation sample": ("eval_recall@10", "eval_ndcg@10")}


def plot_training(
    history: Sequence[dict], path: str | Path, panels: Mapping[str, Sequence[str]] = PANELS, columns: int = 3
) -> None:
    """Draws the figures of `panels` (title → names) over the steps of `trainer.state.log_history` into a `.png`,
    written whole or not at all; without any figure to draw there is none."""
    drawn = {}
    for title, names in panels.items():
        lines = {name: [(log["step"], log[name]) for log in history if name in log] for name in names}
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            drawn[title] = lines
    if drawn:
        draw_lines(path, drawn, "step", columns)


def finish_network(folder: str | Path) -> dict:
    """Draws the learning curve that `train_network` left in a folder (curve.png) and removes its checkpoint: seconds,
    updates and the best epoch, to be kept; nothing where no network was trained."""
    shutil.rmtree(Path(folder) / CHECKPOINT, ignore_errors=True)
    if not (curve := learning_curve(folder)):
        return {}
    plot_training(curve, Path(folder) / "curve.png", {"loss": ("loss",), "validation ndcg@10": ("ndcg@10",)})
    best = max(curve, key=lambda epoch: epoch["ndcg@10"])
    return {"seconds": curve[-1]["seconds"], "updates": curve[-1]["step"], "best": best}


class TrainingRun:
    """What a run starts from, read from the prepared data and the base folder.

    `script_args` is the recipe's dataclass, with `data_dir` and `overwrite`. A base that was made for another
    catalogue raises `ValueError`.

    Attributes:
        config (`RecommenderConfig`): the base's, without its dense head; set the one that the run is to write.
        checkpoint (`str` or `None`): where the run goes on, once it has begun.
    """

    def __init__(self, script_args, training_args: TrainingArguments, model_args: ModelConfig):
        at_least(training_args, **_LEAST)
        if training_args.max_steps == 0 or (training_args.max_steps < 0 and training_args.num_train_epochs == 0):
            raise ValueError(
                f"num_train_epochs is {training_args.num_train_epochs} and max_steps {training_args.max_steps}, which "
                "trains nothing: give one that is more than 0 (max_steps: -1 leaves it to num_train_epochs)"
            )
        self.script_args, self.training_args, self.model_args = script_args, training_args, model_args
        if not model_args.model_name_or_path:
            raise ValueError("model_name_or_path is missing: name the model folder that training starts from")
        self.base = str(local_folder(model_args.model_name_or_path, named_revision(model_args.model_revision)))
        self.checkpoint, self.more_args = None, ()
        self.data, self.config = PreparedData.load(script_args.data_dir), RecommenderConfig.load(self.base)
        self.config.dense = ""  # a dense head of the base does not fit the weights that come out of this run
        self.config.check_catalogue(self.data.items, self.base)
        check_whole(self.base)
        self.index, self.items, self.sequence_tokenizer = load_parts(self.base, self.config)

    def begin(self, prompts: list[Prompt], texts: Texts | None = None, more_args: tuple = ()) -> bool:
        """Records the settings, and what else decides the result, in the output folder; false where it holds the
        finished result of these already. `more_args` are further dataclasses of settings. Raises `ValueError`: other
        settings made what lies there, or the launched processes are no group."""
        self.more_args = more_args
        arguments = (self.script_args, *more_args, self.training_args, self.model_args)
        named = ((name, getattr(one, name, "")) for one in more_args for name in ("distill_from", "soft_targets_from"))
        inputs = {
            "data": self.data.fingerprint,
            "semids": self.index.fingerprint,
            "base": model_content(self.base),
            "prompts": fingerprint(json.dumps([*(prompt.to_dict() for prompt in prompts), phrases(), composed()])),
            **({} if texts is None else {"texts": fingerprint(texts.table)}),
            **{name: model_content(teacher) for name, teacher in named if teacher},
        }
        settings = settings_of(*arguments, ignore=_VOLATILE) | inputs
        state, output_dir = PartialState(), self.training_args.output_dir
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched != state.num_processes:
            raise ValueError(
                f"{launched} processes were launched, but they do not see each other: on a CPU set use_cpu: true and "
                "launch with recipes/accelerate/cpu2.yaml"
            )
        with state.main_process_first():
            main = state.is_main_process
            overwrite = self.script_args.overwrite and main
            outcome = begin_stage(output_dir, settings, overwrite, writes=main, lengths=_LENGTHS)
        if outcome == "done":
            state.print(f"Reusing the model in {output_dir} (same settings, same data).")
            return False
        self.checkpoint = last_complete_checkpoint(output_dir)
        if self.checkpoint and not has_optimizer(self.checkpoint):
            raise ValueError(
                f"{self.checkpoint} has no optimizer's state (save_only_model), so the run cannot go on from it: pass "
                "--overwrite true to train anew"
            )
        adapter = self.model_args.use_peft or any(getattr(one, "train", "") == "new_tokens" for one in more_args)
        if sharded() == "FSDP" and adapter and (self.checkpoint or self.training_args.load_best_model_at_end):
            raise ValueError(  # torch 2.13 does not find the row of a tied head again
                "the checkpoint of an adapter cannot be read back under FSDP: set load_best_model_at_end: false, and "
                f"begin anew with --overwrite true if {output_dir} holds a checkpoint; or launch with ddp.yaml"
            )
        state.print(f"Resuming from {self.checkpoint}." if self.checkpoint else f"Training {self.base}.")
        if outcome == "extend":
            kind = getattr(self.training_args.lr_scheduler_type, "value", self.training_args.lr_scheduler_type)
            state.print(f"The run is extended: from there the learning rate follows the longer schedule ({kind}).")
        logging.getLogger("llmrec").setLevel(logging.INFO if state.is_main_process else logging.WARNING)
        set_seed(self.training_args.seed)
        return True

    def load_recommender(self, texts: Texts | None = None, hidden_dropout: float = 0.0) -> LLMRecommender:
        tokenizer = load_tokenizer(self.base)
        model = load_base(self.base, self.model_args, self.training_args, hidden_dropout)
        more = {"sequence_tokenizer": self.sequence_tokenizer, "texts": texts}
        return LLMRecommender(model, tokenizer, self.index, self.items, self.config, **more)

    def write_sidecars(self, folder: str) -> None:
        write_sidecars(folder, self.config, self.index, self.items, Path(self.base) / ITEM_TOKENIZER)

    def train(self, trainer: Trainer) -> TrainOutput:
        PartialState().print(
            f"{len(trainer.train_dataset):,} rows; checkpoints and the model go to {self.training_args.output_dir}"
        )
        return trainer.train(resume_from_checkpoint=self.checkpoint)

    def finish(
        self, trainer: Trainer, plot: Callable[[list[dict], Path], None] = plot_training, **results: float
    ) -> None:
        """Writes one plain model, its logs (trainer_state.json, as in a checkpoint), their plot and a card, uploads
        them where asked to, and marks the stage as finished, with `results` (and whether lists left out the items of
        histories) beside the validation metrics of the model that was written."""
        output_dir = self.training_args.output_dir
        metrics = save_final_model(trainer, lambda: reload_base(self.base, self.model_args))
        metrics = {name.removeprefix("eval_"): value for name, value in metrics.items() if "@" in name}
        if trainer.sample is not None:
            results["exclude_seen"] = trainer.sample.exclude_seen
        if trainer.is_world_process_zero():
            trainer.state.save_to_json(str(Path(output_dir) / TRAINER_STATE_NAME))
            plot(trainer.state.log_history, Path(output_dir) / "training.png")
            self._provenance(metrics).save(output_dir)
            write_card(output_dir, trainer.hub_model_id or "")
            if self.training_args.push_to_hub:
                trainer.push_to_hub()
            finish_stage(output_dir, **results, **metrics)
        next_step = "Next: recipes/evaluate.py or recipes/recommend.py"
        PartialState().print(f"Validation: {metrics}\nWrote {output_dir}. {next_step}")

    def _provenance(self, metrics: dict[str, float]) -> Provenance:
        """The base's, and this stage: its tasks and rewards, LoRA, settings and validation metrics."""
        ours = {}
        for one in (self.script_args, *self.more_args):
            for each in dataclasses.fields(one):
                default = each.default_factory() if callable(each.default_factory) else each.default
                if (value := getattr(one, each.name)) != default or each.name in _FACTS:
                    ours[each.name] = value
        facts = {name: ours.pop(name) for name in _FACTS if name in ours}
        settings = {name: value for name, value in ours.items() if name not in ("data_dir", "overwrite")}
        trained = self.training_args.to_dict()
        settings |= {name: trained[name] for name in _SHOWN if name in trained}
        if (model := self.model_args).use_peft:
            bits = {"bits": 4} if model.load_in_4bit else {"bits": 8} if model.load_in_8bit else {}
            facts["lora"] = {
                "r": model.lora_r,
                "alpha": model.lora_alpha,
                "modules": model.lora_target_modules,
                **bits,
            }
        stage = re.sub("(Config|Arguments)$", "", type(self.training_args).__name__).lower()  # sft, grpo, dpo
        rest = {"settings": settings, "validation": {name: round(value, 5) for name, value in metrics.items()}}
        return Provenance.load(self.base).then(stage, self.data.datasets, **facts, **rest)
