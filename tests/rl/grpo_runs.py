"""Short real runs of `SemIDGRPOTrainer` on the tiny catalogue, for the tests of this folder."""

from pathlib import Path

from tiny import tiny_data, tiny_index, write_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, ModelConfig

from llmrec.models.folder import RecommenderConfig, load_parts
from llmrec.recommenders import LLMRecommender
from llmrec.rl import Facts, PolicyArguments, SemIDGRPOTrainer, load_rewards, prompt_rows
from llmrec.training import ValidationSample, lora_config

DATA = tiny_data()
INDEX = tiny_index(DATA)


def base_folder(folder: Path, prompt: str = "stream", **config) -> Path:
    return write_tiny_base(folder, DATA, INDEX, prompt, **config)


def settings(folder: Path, **changes) -> GRPOConfig:
    fields = {
        "output_dir": str(folder),
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return GRPOConfig(**{**fields, **changes})


def loaded(base: Path) -> LLMRecommender:
    config = RecommenderConfig.load(base)
    index, items, _ = load_parts(base, config)
    model = AutoModelForCausalLM.from_pretrained(base)
    return LLMRecommender(model, AutoTokenizer.from_pretrained(base), index, items, config)


def make_trainer(
    base: Path,
    arguments: GRPOConfig,
    policy: PolicyArguments | None = None,
    rewards: tuple[str, ...] = ("exact_hit", "prefix_match", "diversity:0.1"),
    tasks: tuple = (),
    model_args: ModelConfig | None = None,
    **more,
) -> SemIDGRPOTrainer:
    """What recipes/grpo.py builds."""
    recommender, policy = loaded(base), policy or PolicyArguments()
    functions, arguments.reward_weights = load_rewards(rewards, Facts(recommender.index, DATA.items, DATA.train))
    peft = None
    if model_args is not None:
        peft = lora_config(model_args, recommender.model, recommender.tokenizer, recommender.index)
    rows = more.pop("train_dataset", None)
    return SemIDGRPOTrainer(
        recommender.model,
        functions,
        arguments,
        recommender=recommender,
        policy=policy,
        train_dataset=prompt_rows(DATA, recommender, tasks, max(policy.log_positives - 1, 0))
        if rows is None
        else rows,
        processing_class=recommender.tokenizer,
        peft_config=peft,
        sample=ValidationSample(recommender, DATA.valid, 40, train=DATA.train),
        **more,
    )


def batch_of(trainer: SemIDGRPOTrainer) -> dict:
    """The first micro-batch of a run, rolled out and scored."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
