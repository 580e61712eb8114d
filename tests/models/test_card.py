"""What a card says of where a model comes from, through all stages, and that a card of one's own stays so."""

import json

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.catalogue.lifecycle import remove_items
from llmrec.files import write_json
from llmrec.models.averaging import average_with_base
from llmrec.models.card import MARK, read_report, write_card
from llmrec.models.folder import RecommenderConfig
from llmrec.models.provenance import Provenance, of_pretrained
from llmrec.models.update import update_model_folder
from llmrec.training.defaults import sft_defaults


@pytest.fixture
def folder(tmp_path):
    """A trained model, of which a card is written."""
    data = tiny_data()
    folder = write_tiny_base(tmp_path / "model", data, tiny_index(data))
    made = Provenance("org/Chat-1B", {"license": "other", "license_name": "chat"}).then("init", embedding_init="text")
    tasks = ["stream", str(tmp_path / "own.yaml")]
    made.then("grpo", ["me/shop"], tasks=tasks, lora={"r": 8}, validation={"ndcg@10": 0.25}).save(folder)
    write_card(folder)
    return folder


def card_of(folder) -> ModelCard:
    card = ModelCard.load(folder / "README.md")
    type(card.data)(**card.data.to_dict())  # raises where a field is none
    return card


def test_a_card_says_what_the_model_was_made_of(folder, tmp_path):
    card = card_of(folder)
    assert (card.data.base_model, card.data.license, card.data.license_name) == ("org/Chat-1B", "other", "chat")
    assert card.data.datasets == ["me/shop"] and {"grpo", "trl", "lora"} <= {*card.data.tags}
    assert "2. **grpo**: tasks stream, own.yaml; lora r 8" in card.text and str(tmp_path) not in card.content
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results] == [("ndcg@10", 0.25)]


def test_later_stages_go_on_and_validation_figures_are_those_of_the_last(folder, tmp_path):
    later = remove_items(tiny_index(tiny_data()), ["item-23"])
    update_model_folder(folder, later, tiny_data().items.slice(0, 23), tmp_path / "next")
    average_with_base(folder, folder, 0.5, tmp_path / "averaged")
    cards = {name: card_of(tmp_path / name) for name in ("next", "averaged")}
    assert {card.data.base_model for card in cards.values()} == {"org/Chat-1B"}
    assert cards["next"].data.base_model_relation == "finetune" and "1 removed" in cards["next"].text
    assert cards["averaged"].data.base_model_relation == "merge" and "WiSE-FT" in cards["averaged"].text
    assert all(card.data.eval_results is None and "(23 items)" in card.text for card in [cards["next"]])


def test_a_text_of_ones_own_stays_and_its_header_follows(folder):
    path = folder / "README.md"
    path.write_text("---\nlanguage: en\nbase_model: old/one\n---\n# Ours\n\nWritten by hand.\n")
    write_card(folder, "me/shop-llm")
    card = card_of(folder)
    assert card.text.strip() == "# Ours\n\nWritten by hand."
    assert (card.data.language, card.data.base_model, card.data.model_name) == ("en", "org/Chat-1B", "shop-llm")
    path.write_text(f"{MARK}\n")
    write_card(folder, "me/shop-llm")
    assert 'from_pretrained("me/shop-llm")' in path.read_text()


@pytest.mark.parametrize("first, named", [("Qwen/Qwen3-0.6B@v1", "Qwen/Qwen3-0.6B"), ("/x/own", ""), ("{warmed}", "")])
def test_folders_of_older_versions_are_known_by_their_stages(tmp_path, first, named):
    base, warmed = tmp_path / "base", tmp_path / "warmed"
    for folder, start in ((base, first.format(warmed=warmed)), (warmed, str(base))):
        folder.mkdir()
        (folder / "stage.json").write_text(json.dumps({"settings": {"model_name_or_path": start}}))
    assert Provenance.load(warmed) == Provenance(named) and not Provenance.load(warmed).from_scratch
    (base / "stage.json").write_text(json.dumps({"settings": {"model_config": {"model_type": "qwen3"}}}))
    assert Provenance.load(warmed).from_scratch


def test_a_pretrained_folder_says_what_it_can(tmp_path):
    assert of_pretrained(str(tmp_path)) == Provenance()
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\nlicense_link: https://x\n---\n")
    assert of_pretrained(str(tmp_path)).license == {"license": "llama3.2", "license_link": "https://x"}
    assert of_pretrained(str(tmp_path), "org/One", "mit") == Provenance("org/One", {"license": "mit"})
    assert of_pretrained("org/One@v2").base_model == "org/One"  # no license: the Hub is not reached here
    Provenance("org/GGUF").then("import", file=str(tmp_path / "m.gguf")).save(tmp_path)
    assert of_pretrained(str(tmp_path)).stages == [{"stage": "import", "file": "m.gguf"}]


def test_settings_follow_from_where_a_model_comes_from(folder):
    settings = {"model_name_or_path": str(folder), "model_revision": "main", "use_peft": True}
    assert sft_defaults(settings)[1]["learning_rate"] == 5e-4
    Provenance().then("init", from_scratch=True).then("sft").save(folder)
    assert sft_defaults(settings)[1]["learning_rate"] == 2e-3


@pytest.mark.parametrize(
    "data, name, message", [("other", "ours", "is about other data"), (None, "our", "did you mean 'ours'")]
)
def test_figures_of_another_report_are_refused(folder, tmp_path, data, name, message):
    config = RecommenderConfig.load(folder)
    facts = {"data fingerprint": data or config.trained_on["fingerprint"], "split": "test, 3 rows"}
    write_json(tmp_path / "metrics.json", {"facts": facts, "recommenders": {"ours": {}}})
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path, name, config)
