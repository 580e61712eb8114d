"""`LLMRecommender` as users of Hugging Face know it: loading onto a device, saving, pushing."""

import json

import pytest
import torch
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec import LLMRecommender
from llmrec.decoding import SemIDTrie, self_check
from llmrec.devices import best_device, best_dtype
from llmrec.recommenders import files_of, llm, load_recommender

HISTORIES = [["item-01"], ["item-02", "item-03"], []]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    data = tiny_data()
    base = write_tiny_base(tmp_path_factory.mktemp("base") / "model", data, tiny_index(data))
    (base / "README.md").write_text("# card\n")
    (base / "item_tokenizer").mkdir()
    (base / "item_tokenizer" / "config.json").write_text("{}")
    return base


@pytest.fixture
def moves(monkeypatch):
    """Where models are moved to; nothing moves, since one device is all that there is here."""
    calls = []
    monkeypatch.setattr("transformers.PreTrainedModel.to", lambda model, *args: calls.append(args) or model)
    return calls


def test_the_accelerator_is_taken_where_there_is_one(folder, moves, monkeypatch):
    LLMRecommender.from_pretrained(folder)
    assert moves == [(best_device(),)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    LLMRecommender.from_pretrained(folder)
    load_recommender(folder)
    load_recommender(folder, device="cpu")
    assert moves[1:] == [(torch.device("cuda"),), (torch.device("cuda"),), (torch.device("cpu"),)]


def test_what_transformers_has_placed_stays_there(folder, moves, monkeypatch):
    LLMRecommender.from_pretrained(folder, device_map={"": "cpu"})
    monkeypatch.setattr("transformers.PreTrainedModel.quantization_method", "bitsandbytes", raising=False)
    LLMRecommender.from_pretrained(folder)
    assert moves == []
    LLMRecommender.from_pretrained(folder, device="cpu")  # who names a device gets it, or transformers' error
    assert moves == [(torch.device("cpu"),)]


def test_dtypes_are_taken_as_transformers_takes_them(folder):
    plain = LLMRecommender.from_pretrained(folder)
    for dtype in ("bfloat16", torch.bfloat16):
        recommender = LLMRecommender.from_pretrained(folder, dtype=dtype)
        assert recommender.model.dtype == torch.bfloat16
        for items in recommender.recommend(HISTORIES, k=24):
            assert len({item.item_id for item in items}) == 24
    assert LLMRecommender.from_pretrained(folder, dtype="auto").model.dtype == plain.model.dtype == torch.float32
    assert plain.to(torch.bfloat16) is plain and plain.model.dtype == torch.bfloat16
    assert len({item.item_id for item in plain.recommend(HISTORIES, k=24)[1]}) == 24


def test_halves_are_read_as_float32_on_a_cpu_unless_they_are_asked_for(folder, tmp_path, monkeypatch):
    LLMRecommender.from_pretrained(folder, dtype="bfloat16").save_pretrained(tmp_path / "half")
    assert LLMRecommender.from_pretrained(tmp_path / "half", device="cpu").model.dtype == torch.float32
    assert LLMRecommender.from_pretrained(tmp_path / "half", dtype="auto").model.dtype == torch.bfloat16
    assert best_dtype(None, torch.device("cuda")) == "auto"


def test_the_search_follows_the_model(folder, monkeypatch):
    recommender = LLMRecommender.from_pretrained(folder)
    recommender.recommend(HISTORIES)  # checks itself
    trie, moved = recommender.trie, []
    monkeypatch.setattr(SemIDTrie, "to", lambda trie, device: moved.append(device) or trie)
    recommender.recommend(HISTORIES)
    assert moved == [recommender.device] == [trie.device]
    monkeypatch.undo()
    recommender.to("meta")
    assert recommender.device == torch.device("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):  # a meta tensor holds no numbers to search with
        recommender.recommend(HISTORIES)
    assert trie.device == torch.device("meta") == trie.order.device == trie.head_ids[0].device


def test_a_saved_folder_is_whole_and_recommends_the_same(folder, tmp_path):
    recommender = LLMRecommender.from_pretrained(folder)
    recommender.save_pretrained(tmp_path / "copy")
    assert {path.name for path in folder.iterdir()} - {self_check.FILE} <= {
        path.name for path in (tmp_path / "copy").iterdir()
    }
    assert (tmp_path / "copy" / "item_tokenizer" / "config.json").exists()
    assert (tmp_path / "copy" / "generation_config.json").exists()
    again = LLMRecommender.from_pretrained(tmp_path / "copy")
    assert again.recommend(HISTORIES) == recommender.recommend(HISTORIES)
    assert again.config == recommender.config and again.index.fingerprint == recommender.index.fingerprint
    with pytest.raises(ValueError, match="holds files already"):
        recommender.save_pretrained(tmp_path / "copy")


def test_a_save_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    recommender = LLMRecommender.from_pretrained(folder)
    monkeypatch.setattr(llm, "write_sidecars", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        recommender.save_pretrained(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
    recommender.model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="Linear is no model of transformers alone"):
        recommender.save_pretrained(tmp_path / "copy")


def test_pushing_uploads_a_whole_folder(folder, hub):
    recommender = LLMRecommender.from_pretrained(folder)
    commit = recommender.push_to_hub("model", private=True, token="secret", revision="v2", commit_message="Ours")
    assert commit.repo_url.endswith("me/model") and [one.message for one in hub.commits] == ["Ours"]
    again = LLMRecommender.from_pretrained("me/model@v2", token="secret")
    assert again.recommend(HISTORIES) == recommender.recommend(HISTORIES)
    card = (again.folder / "README.md").read_text()  # the text is its owner's
    assert card.startswith("---\n") and "model_name" not in card and "# card" in card and "from_pretrained" not in card


def test_a_device_or_dtype_that_is_not_there_is_named_before_anything_is_loaded(folder):
    for what in ({"device": "nonsense"}, {"dtype": "nonsense"}, {"device": "cuda"}):
        if what != {"device": "cuda"} or not torch.cuda.is_available():
            with pytest.raises(ValueError, match=next(iter(what)) + " '" + next(iter(what.values()))):
                LLMRecommender.from_pretrained(folder, **what)


def test_nothing_follows_no_texts(folder):
    recommender = LLMRecommender.from_pretrained(folder)
    assert recommender.recommend_after([]) == []
    with pytest.raises(ValueError, match="k is 0, it should be a whole number of at least 1"):
        recommender.recommend_after(["x"], k=0)
    with pytest.raises(ValueError, match="num_beams is 0"):
        recommender.recommend_after(["x"], num_beams=0)
    recommender.config.num_beams = 0  # a folder's config that was edited
    with pytest.raises(ValueError, match="num_beams is 0"):
        recommender.recommend([[]])


def test_what_is_found_of_decoding_is_kept_in_the_folder_and_is_no_part_of_what_it_is(tmp_path):
    data = tiny_data()
    folder = write_tiny_base(tmp_path / "base", data, tiny_index(data))
    before, recommender = files_of(folder), LLMRecommender.from_pretrained(folder)
    recommender.recommend([["item-01"]])
    assert (folder / self_check.FILE).is_file() and files_of(folder) == before


def test_a_revision_is_of_the_hub(folder, monkeypatch):
    asked = []

    def download(name, repo_type, revision, token, ignore_patterns):
        assert repo_type == "model" and "*.bin" in ignore_patterns and "*.pkl" in ignore_patterns
        asked.append((name, revision, token))
        return str(folder)

    monkeypatch.setattr("llmrec.hub.snapshot_download", download)
    recommender = LLMRecommender.from_pretrained("me/industrial", revision="v2", token="secret")
    assert asked == [("me/industrial", "v2", "secret")]
    assert len(recommender.recommend(HISTORIES, k=3)[0]) == 3
    with pytest.raises(ValueError, match="revision='v2' is for names of the Hub"):
        LLMRecommender.from_pretrained(folder, revision="v2")
    LLMRecommender.from_pretrained(folder, token="secret")  # not needed here
    assert json.loads((folder / "llmrec_config.json").read_text())["prompt"]


def test_old_names_still_answer(folder):
    recommender = LLMRecommender.from_pretrained(folder)
    with pytest.warns(FutureWarning, match="after is now recommend_after"):
        assert recommender.after(["x"], 3) == recommender.recommend_after(["x"], 3)
    with pytest.warns(FutureWarning, match="tell is now generate_text"):
        assert recommender.tell("item_to_title", [{"about": "item-03"}], 3)
