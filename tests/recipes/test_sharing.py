"""A benchmark and a model that was trained on it, pushed to a Hub, which a folder stands for, and read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard
from tiny import MODEL, tiny_data
from trl import ModelConfig, SFTConfig

import recipes.evaluate
import recipes.init_model
import recipes.push_to_hub
import recipes.sft
import recipes.tokenize_items
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.evaluation.alignment import AlignmentArguments
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.provenance import Provenance
from llmrec.recommenders import LLMRecommender, load_recommender
from llmrec.training import SFTArguments
from recipes.push_to_hub import PushArguments


@pytest.fixture
def shop(tmp_path) -> Path:
    """Prepared data and Semantic IDs, both of files of this machine, and a pretrained model in a folder."""
    data = tiny_data()
    settings = {"source": "tables", "source_args": {"interactions": str(tmp_path / "log.csv")}}
    data.info |= {"settings": settings, "rules": {"split": "leave_one_out", "user_k": 5}, "statistics": {"users": 40}}
    data.save(tmp_path / "data")
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32))
    recipes.tokenize_items.main(
        recipes.tokenize_items.TokenizeArguments(
            str(tmp_path / "data"),
            str(tmp_path / "semids"),
            features=[{"kind": "precomputed", "path": str(tmp_path / "vectors.npy")}],
            tokenizer_args={"codebook_sizes": [4, 4]},
        )
    )
    tokenizer = train_tokenizer(data.items["title"].to_pylist(), 300)
    model_from_config(MODEL, tokenizer).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    (tmp_path / "chat" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A chat model\n")
    return tmp_path


def push(**arguments) -> None:
    recipes.push_to_hub.main(PushArguments(**{name: value and str(value) for name, value in arguments.items()}))


def names_a_place(folder: Path, place: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and str(place).encode() in path.read_bytes()]


def test_a_benchmark_is_shared_whole_and_a_model_made_of_it(shop, hub):
    push(repo_id="shop/bench", data_dir=shop / "data", semids=shop / "semids", license="cc-by-4.0", revision="v1")
    there = hub.at("shop/bench", "dataset", "v1")
    files = hub.files("shop/bench", "dataset", "v1")
    assert {"items.parquet", "train.parquet", "valid.parquet", "test.parquet", "dataset.json"} <= files
    assert {"README.md", "semids.parquet", "features.npy", "item_tokenizer/config.json", "report/report.md"} <= files
    assert "stage.json" not in files and not names_a_place(there, shop)
    card = DatasetCard.load(there / "README.md")
    card.data = type(card.data)(**card.data.to_dict())  # every field is one that the library takes
    assert (card.data.license, card.data.pretty_name) == ("cc-by-4.0", "tiny") and "semid_fingerprint" not in card.text
    assert {one["config_name"] for one in card.data.configs} == {"items", "sequences", "targets", "semids"}
    paths = {file["path"] for one in card.data.configs for file in one["data_files"]}
    assert paths <= files and 'PreparedData.load("shop/bench")' in card.text

    mine, theirs = PreparedData.load(shop / "data"), PreparedData.load("shop/bench", revision="v1")
    assert theirs.fingerprint == mine.fingerprint and theirs.datasets == ["shop/bench"] and mine.datasets == []
    with pytest.raises(ValueError, match="shop/bench@v2 is neither a folder nor a data set of the Hub"):
        PreparedData.load("shop/bench@v2")
    init = recipes.init_model.InitArguments(
        "shop/bench@v1", "shop/bench@v1", str(shop / "base"), str(shop / "chat"), base_model="org/Chat-1B"
    )
    recipes.init_model.main(init)
    recipes.sft.main(
        recipes.sft.DataArguments("shop/bench@v1", tasks=["stream", "title_to_item"], num_beams=10, max_history=8),
        SFTArguments(),
        SFTConfig(
            str(shop / "model"), max_steps=3, max_length=128, use_cpu=True, bf16=False, report_to="none",
            gradient_checkpointing=False, disable_tqdm=True, push_to_hub=True, hub_model_id="shop/llm",
        ),
        ModelConfig(str(shop / "base"), use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    check_model(hub.at("shop/llm"), shop, figures=False)
    evaluated = recipes.evaluate.EvaluateArguments(
        str(shop / "data"), str(shop / "report"), {"ours": "shop/llm@main"}, bootstrap=50
    )
    recipes.evaluate.main(evaluated, AlignmentArguments())
    push(repo_id="shop/llm", model=shop / "model", report=shop / "report", recommender="ours", revision="v2")
    check_model(hub.at("shop/llm", revision="v2"), shop, figures=True)
    histories = mine.test["history"].to_pylist()[:3]
    lists = LLMRecommender.from_pretrained(shop / "model").recommend(histories, k=5)
    assert LLMRecommender.from_pretrained("shop/llm", revision="v2").recommend(histories, k=5) == lists
    assert load_recommender("shop/llm@v2").recommend(histories, k=5) == lists
    with pytest.raises(ValueError, match="shop/llm@v2 names a revision, and revision='main' another one"):
        LLMRecommender.from_pretrained("shop/llm@v2", revision="main")


def check_model(there: Path, shop: Path, figures: bool) -> None:
    names = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert {"README.md", "provenance.json", "llmrec_config.json", "semids.parquet", "model.safetensors"} <= names
    assert not names & {"stage.json", "trainer_state.json", "training_args.bin", "adapter_config.json"}
    assert not any("checkpoint-" in name or "optimizer" in name for name in names) and not names_a_place(there, shop)
    card = ModelCard.load(there / "README.md")
    data = card.data
    assert (data.base_model, data.base_model_relation, data.license) == ("org/Chat-1B", "finetune", "apache-2.0")
    assert data.datasets == ["shop/bench"] and {"llmrec", "trl", "sft", "lora"} <= set(data.tags)
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "text-generation", "llm")
    splits = {(one.dataset_split, one.metric_type) for one in data.eval_results}
    assert ("validation", "ndcg@10") in splits and (("test", "recall@10") in splits) == figures
    assert 'from_pretrained("shop/llm")' in card.text and "tasks stream, title_to_item; lora r 4" in card.text
    assert "The weights are float32" in card.text and ("95 % interval" in card.text) == figures
    stages = [one["stage"] for one in Provenance.load(there).stages]
    assert stages == ["init", "sft"] and json.loads((there / "config.json").read_text())["model_type"] == "qwen3"


def test_files_are_written_to_be_looked_at_and_nothing_is_uploaded(shop, hub):
    push(repo_id="me/ids", semids=shop / "semids", output_dir=shop / "look")
    index = SemIDIndex.load(shop / "look" / "semids.parquet")
    assert index.fingerprint == SemIDIndex.load(shop / "semids" / "semids.parquet").fingerprint and not hub.commits
    assert "Semantic IDs of 24 items" in (shop / "look" / "README.md").read_text()
    assert not any(path.is_symlink() for path in (shop / "look").rglob("*")) and not names_a_place(shop / "look", shop)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "give either model, or data_dir and semids"),
        ({"model": "m", "data_dir": "d"}, "give either model, or data_dir and semids"),
        ({"data_dir": "nowhere"}, "nowhere is no folder: name one that a recipe wrote"),
        ({"model": ".", "report": "r"}, "report and recommender belong together"),
    ],
)
def test_what_cannot_be_pushed_is_refused(arguments, message, hub):
    with pytest.raises(ValueError, match=message):
        push(repo_id="me/x", **arguments)
    assert not hub.commits
