"""KL(base || model) on general conversations: its value, the base behind it, what it keeps, and that a run goes on."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from small_runs import DATA, INDEX, base_folder, evaluation_rows, settings
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from llmrec.instructions import Catalogue, Renderer, build_dataset, load_prompt, parse_mixture
from llmrec.models.from_scratch import train_tokenizer
from llmrec.training import Distillation, SemIDSFTTrainer, SFTArguments, check_sft, distillation, lora_config
from llmrec.training.loading import load_base

ROOT = Path(__file__).parents[2]
WORDS = "rain sun wind snow fog hail storm cloud frost heat".split()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("distillation") / "base")


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """General conversations of several lengths; the last ones are for looking only."""
    folder, every = tmp_path_factory.mktemp("talks"), []
    for n in range(20):
        answer = " ".join(WORDS[(n + i) % 10] for i in range(2 + n % 5))
        every.append(
            [{"role": "user", "content": f"What of {WORDS[n % 10]}?"}, {"role": "assistant", "content": answer}]
        )
    for name, some in (("train", every[:14]), ("held_out", every[14:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in some))
    return folder


def mixture(file: Path):
    return parse_mixture(["stream:0.5", {"chat": str(file)}], load_prompt("stream"), INDEX)


def rows(tokenizer, file: Path, weigh=None):
    renderer = Renderer(tokenizer, Catalogue(INDEX, DATA.items))
    return build_dataset(DATA, mixture(file), renderer, 20, 128, 0, weigh)


def make_trainer(base, talks, arguments, weight=0.0, lora=False, weigh=None, distill_from=""):
    """What recipes/sft.py builds, without its validation sample."""
    peft = {"use_peft": True, "lora_r": 8, "lora_target_modules": "all-linear", "lora_dropout": 0.0} if lora else {}
    model_args = ModelConfig(model_name_or_path=str(base), **peft)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_base(str(base), model_args, arguments)
    adapter, sft = lora_config(model_args, model, tokenizer, INDEX), SFTArguments(distill_weight=weight)
    sft.distill_from = distill_from
    given = (sft, mixture(talks / "train.jsonl"), model, tokenizer, INDEX, str(base), lora)
    return SemIDSFTTrainer(
        model,
        arguments,
        train_dataset=rows(tokenizer, talks / "train.jsonl", weigh),
        eval_dataset=evaluation_rows(tokenizer),
        processing_class=tokenizer,
        peft_config=adapter,
        distillation=distillation(*given),
    )


def shaken(model, scale=0.3):
    """The model with what it trains moved at random."""
    generator = torch.Generator().manual_seed(1)
    for one in model.parameters():
        if one.requires_grad:
            one.data += scale * one.data.std().clamp(min=0.05) * torch.randn(one.shape, generator=generator)
    return model


def divergences(base, model, examples, new):
    """KL(base || model) at every labelled position of every row, the plain way."""
    found = []
    for example in examples:
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            known, said = base(ids).logits[0].exp(), model(ids).logits[0].softmax(-1)
        known[:, new] = 0
        known /= known.sum(-1, keepdim=True)
        for place in range(1, len(example["labels"])):
            if example["labels"][place] != -100:
                p, q = known[place - 1], said[place - 1]
                found.append((p[p > 0] * (p[p > 0].log() - q[p > 0].log())).sum().item())
    return found


def chats(trainer):
    return [row for row in trainer.train_dataset if row["task"] == "chat"]


def test_it_is_the_divergence_of_the_base_over_the_tokens_that_it_knew(base, talks, tmp_path):
    trainer = make_trainer(base, talks, settings(tmp_path), weight=2.0)
    before, examples = AutoModelForCausalLM.from_pretrained(base).eval(), chats(trainer)
    new = trainer.distillation.new
    assert len(examples) == 14 and len({len(row["input_ids"]) for row in examples}) > 3 and len(new) == 16
    model = shaken(trainer.model)
    batch = trainer.data_collator(examples)
    assert batch.pop("general").all()
    with torch.no_grad():
        found = trainer.distillation.losses(model, batch, model)
    assert found.tolist() == pytest.approx(divergences(before, model.eval(), examples, new), rel=1e-3, abs=1e-5)
    assert found.min() > 0.01
    # What the model gives to Semantic IDs counts: louder rows of theirs, a larger divergence.
    model.get_input_embeddings().weight.data[new] *= 5
    with torch.no_grad():
        assert trainer.distillation.losses(model, batch, model).mean() > found.mean()


def test_without_its_adapter_the_model_is_its_base(base, talks, tmp_path):
    trainer = make_trainer(base, talks, settings(tmp_path), weight=1.0, lora=True)
    assert trainer.distillation.base is None
    model, batch = trainer.model.train(), trainer.data_collator(chats(trainer)[:4])
    batch.pop("general")
    start = trainer.distillation.losses(model, batch, model)
    said = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(-1)
    mass = said[..., trainer.distillation.new].sum(-1)[:, :-1][batch["labels"][:, 1:] != -100]
    assert start.tolist() == pytest.approx((-(1 - mass).log()).tolist(), rel=1e-3)  # all that differs yet
    shaken(model, 1.0)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    own = trainer.distillation.losses(model, batch, model)
    apart = Distillation(1.0, trainer.distillation.new, AutoModelForCausalLM.from_pretrained(base).eval())
    assert own.tolist() == pytest.approx(apart.losses(model, batch, model).tolist(), rel=1e-4)
    assert (own - start).abs().min() > 1e-3 and model.training
    assert {name for name, one in model.named_parameters() if one.requires_grad} == trained
    own.mean().backward()
    assert all(one.grad is not None for name, one in model.named_parameters() if name in trained)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_a_step_is_that_of_both_kinds_of_rows(base, talks, tmp_path, weighted):
    def weigh(row, answer):
        return [0.5 + place % 3 for place in range(len(answer))]

    trainer = make_trainer(base, talks, settings(tmp_path), weight=3.0, weigh=weigh if weighted else None)
    before, model = AutoModelForCausalLM.from_pretrained(base).eval(), shaken(trainer.model).eval()
    some = chats(trainer)[:3]
    others = [trainer.train_dataset[place] for place in (0, 1)]
    examples = [others[0], *some, others[1]]
    top = count = 0.0
    for example in examples:
        weights = [w for w, label in zip(example.get("weights") or [1.0] * 999, example["labels"]) if label != -100]
        if example["task"] == "chat":
            losses = [3.0 * loss for loss in divergences(before, model, [example], trainer.distillation.new)]
        else:
            ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
            log = model(ids).logits[0, :-1].log_softmax(-1).detach()
            losses = [-log[i, label].item() for i, label in enumerate(labels[1:]) if label != -100]
        top += sum(w * loss for w, loss in zip(weights, losses, strict=True))
        count += sum(weights)
    batch = trainer.data_collator(examples)
    assert batch["general"].tolist() == [False, True, True, True, False]
    with torch.no_grad():
        assert trainer.compute_loss(model, batch).item() == pytest.approx(top / count, rel=1e-4)
        counted = torch.tensor(2 * count)
        halved = trainer.compute_loss(model, batch, num_items_in_batch=counted).item()
        assert halved == pytest.approx(top / count / 2, rel=1e-4)
        plain = make_trainer(base, talks, settings(tmp_path / "plain")).data_collator(examples)
        assert "general" not in plain


def test_a_base_that_was_never_extended_can_be_distilled_from(base, talks, tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    new = tokenizer.convert_tokens_to_ids(INDEX.tokens)
    short = train_tokenizer(DATA.items["title"].to_pylist(), 300)
    assert min(new) == len(short) == len(tokenizer) - 16
    model.resize_token_embeddings(min(new))
    model.save_pretrained(tmp_path / "plain")
    short.save_pretrained(tmp_path / "plain")
    named = make_trainer(base, talks, settings(tmp_path), 1.0, lora=True, distill_from=str(tmp_path / "plain"))
    batch = named.data_collator(chats(named)[:4])
    batch.pop("general")
    model = shaken(named.model)
    found = named.distillation.losses(model, batch, model).tolist()
    assert named.distillation.base.get_input_embeddings().num_embeddings == min(new)
    assert found == pytest.approx(Distillation(1.0, new).losses(model, batch, model).tolist(), rel=1e-3)

    short.add_tokens(["another"])
    short.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="plain has other tokens"):
        make_trainer(base, talks, settings(tmp_path), 1.0, lora=True, distill_from=str(tmp_path / "plain"))


@pytest.mark.parametrize("loss_type", ["nll", pytest.param("dft", marks=pytest.mark.slow)])  # ours, and TRL's
def test_two_processes_give_the_loss_of_one(base, talks, tmp_path, loss_type):
    """Rows are general in some processes and not in others."""
    script, found = tmp_path / "run.py", []
    script.write_text(
        "import sys; from pathlib import Path; from test_distillation import make_trainer, settings; import json\n"
        "base, talks, out, size, loss_type = sys.argv[1:]\n"
        "arguments = settings(out, max_steps=6, per_device_train_batch_size=int(size), loss_type=loss_type)\n"
        "trainer = make_trainer(base, Path(talks), arguments, 2.0)\n"
        "trainer.train()\n"
        "logs = [log['loss'] for log in trainer.state.log_history if 'loss' in log]\n"
        "(Path(out) / 'losses.json').write_text(json.dumps(logs)) if trainer.is_world_process_zero() else None\n"
    )
    launch = ["-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "recipes/accelerate/cpu2.yaml")]
    places = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    for name, how, size in (("one", [], 2), ("two", launch, 1)):
        given = [script, base, talks, tmp_path / name, size, loss_type]
        command = [sys.executable, *how, *map(str, given)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(json.loads((tmp_path / name / "losses.json").read_text()))
    assert found[0] == pytest.approx(found[1], rel=1e-3) and len(found[0]) == 6


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_that_distils_moves_less_on_general_text(base, talks, tmp_path, lora):
    before = AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    looked_at = [row for row in rows(tokenizer, talks / "held_out.jsonl") if row["task"] == "chat"]
    moved, learned = {}, {}
    for weight in (0.0, 5.0):
        arguments = settings(tmp_path / str(weight), max_steps=24, per_device_train_batch_size=8)
        trainer = make_trainer(base, talks, arguments, weight, lora)
        new = tokenizer.convert_tokens_to_ids(INDEX.tokens)
        trainer.train()
        model = trainer.model.eval()
        moved[weight] = sum(divergences(before, model, looked_at, new))
        learned[weight] = trainer.evaluate()["eval_loss"]
        logged = [log["general_kl"] for log in trainer.state.log_history if "general_kl" in log]
        assert bool(logged) == bool(weight)
    assert moved[5.0] < 0.5 * moved[0.0]
    assert learned[5.0] < learned[0.0] + 0.3


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_that_goes_on_ends_where_the_whole_one_does(base, talks, tmp_path, lora):
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(base, talks, settings(tmp_path / "a", **arguments), 1.0, lora)
    whole.train()
    again = make_trainer(base, talks, settings(tmp_path / "b", **arguments), 1.0, lora)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    theirs = dict(again.model.named_parameters())
    assert all(torch.allclose(one, theirs[name], atol=1e-6) for name, one in whole.model.named_parameters())


@pytest.mark.parametrize(
    ("stage", "training", "message"),
    [
        ({"distill_weight": -1.0}, {}, "distill_weight: -1.0"),
        ({"distill_from": "base"}, {}, "above 0 with distill_from"),
        ({"distill_weight": 1.0, "text_weight": 0.0}, {}, "text_weight: 0 leaves nothing of distill_weight"),
        ({"distill_weight": 1.0}, {"packing": True}, "packing and padding_free to false"),
        ({"distill_weight": 1.0}, {"padding_free": True}, "packing and padding_free to false"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, stage, training, message):
    with pytest.raises(ValueError, match=message):
        check_sft(SFTArguments(**stage), settings(tmp_path, **training), ModelConfig())


def test_the_recipe_distils_and_needs_general_conversations(base, talks, tmp_path, monkeypatch):
    DATA.save(tmp_path / "data")
    fields = {
        "model_name_or_path": str(base),
        "data_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"),
        "tasks": ["stream", {"chat": str(talks / "train.jsonl"), "weight": 4}],
        "distill_weight": 1.0,
        "max_steps": 4,
        "validation_rows": 4,
        "num_beams": 4,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }

    def run(**changes):
        (tmp_path / "sft.yaml").write_text(yaml.safe_dump(fields | changes))
        monkeypatch.setattr(sys, "argv", ["recipes/sft.py", "--config", str(tmp_path / "sft.yaml")])
        runpy.run_path(str(ROOT / "recipes" / "sft.py"), run_name="__main__")

    with pytest.raises(ValueError, match="tasks has none: add {chat"):
        run(tasks=["stream"])
    run()
    assert json.loads((tmp_path / "out" / "stage.json").read_text())["complete"]
    teacher = tmp_path / "teacher"
    shutil.copytree(base, teacher)
    named = {"output_dir": str(tmp_path / "taught"), "distill_from": str(teacher)}
    run(**named, max_steps=1)
    shaken(AutoModelForCausalLM.from_pretrained(teacher)).save_pretrained(teacher)
    with pytest.raises(ValueError, match=r"other settings \(distill_from\)"):
        run(**named, max_steps=1)


def test_rows_that_do_not_tell_their_task_are_refused(base, talks, tmp_path):
    trainer = make_trainer(base, talks, settings(tmp_path), 1.0)
    untold = Dataset.from_list([{"input_ids": [5, 6], "labels": [-100, 6]}])
    given = {"processing_class": trainer.processing_class, "distillation": trainer.distillation}
    with pytest.raises(ValueError, match="by the column 'task' .'chat'., which a row lacks"):
        SemIDSFTTrainer(trainer.model, settings(tmp_path), train_dataset=untold, **given).train()


def test_a_teacher_that_is_no_model_is_named(base, talks, tmp_path):
    for folder in (tmp_path / "gone", talks):
        with pytest.raises(ValueError, match=f"distill_from: {folder}.* (is neither a folder with a model|be read)"):
            make_trainer(base, talks, settings(tmp_path), 1.0, distill_from=str(folder))
