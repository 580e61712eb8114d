"""Folders that strangers made, or that a disk has damaged: refused with the file and the field, or the same lists."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_data, tiny_index, write_tiny_base
from trl import ModelConfig, SFTConfig

from llmrec import LLMRecommender
from llmrec.catalogue.semids import SemIDIndex
from llmrec.features import ItemFeatures
from llmrec.item_tokenizers import load_item_tokenizer
from llmrec.models.folder import CHECKSUMS, CONFIG, SEMIDS
from llmrec.models.update import update_model_folder
from llmrec.training.loading import load_base

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
SCRIPT = Path(__file__).with_name("damaged_folders.py")


@pytest.fixture
def folder(tmp_path):
    """Without checksums, so that what is looked at after them is looked at."""
    data = tiny_data()
    made = write_tiny_base(tmp_path / "model", data, tiny_index(data))
    (made / CHECKSUMS).unlink()
    return made


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(ValueError) as error:
        LLMRecommender.from_pretrained(folder)
    assert all(one in str(error.value) for one in said), error.value


def edit(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# semids.parquet


def header(**fields):
    def change(table: pa.Table) -> pa.Table:
        made = json.loads(table.schema.metadata[b"llmrec"]) | fields
        return table.replace_schema_metadata({b"llmrec": json.dumps(made).encode()})

    return change


def info(**fields):
    def change(table: pa.Table) -> pa.Table:
        made = json.loads(table.schema.metadata[b"llmrec"])
        return header(info=made["info"] | fields)(table)

    return change


def column(name: str, change):
    def changed(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, change(table[name]))

    return changed


def first_codes(codes: list | None):
    return column("codes", lambda old: pa.array([codes, *old.to_pylist()[1:]], pa.list_(pa.int32())))


SEMIDS_DAMAGE = [
    (lambda table: table.drop_columns(["title"]), "title"),
    (lambda table: table.drop_columns(["codes"]), "codes"),
    (lambda table: table.replace_schema_metadata({}), "not written by llmrec"),
    (lambda table: table.replace_schema_metadata({b"llmrec": b'{"pattern": '}), "its header is damaged"),
    (lambda table: table.replace_schema_metadata({b"llmrec": b"[" * 100_000}), "its header is damaged"),
    (lambda table: pa.concat_tables([table, table.slice(0, 1)]), "'item-00' has the same Semantic ID in 2 rows"),
    (column("item_id", lambda old: pa.array([None, *old.to_pylist()[1:]])), "column 'item_id': row 0 is null"),
    (column("item_id", lambda old: pa.array(range(len(old)))), "column 'item_id': it holds int64"),
    (column("codes", lambda old: old.cast(pa.list_(pa.int64()))), "column 'codes': it holds list"),
    (column("codes", lambda old: old.cast(pa.list_(pa.float32()))), "column 'codes': it holds list"),
    (first_codes(None), "column 'codes': row 0 is null"),
    (first_codes([1, None]), "a code is null"),
    (first_codes([1, 2, 3, 1]), "item 'item-00' has 4 codes, codebook_sizes has 3 levels"),
    (first_codes([-2, 1]), "item 'item-00': code -2 at level 0 is outside"),
    (first_codes([6, 1]), "item 'item-00': code 6 at level 0 is outside"),
    (first_codes([5, 5]), "is not the one the model was trained with"),
    (header(pattern=7), "pattern is 7"),
    (header(pattern="{code.__class__}{level}"), "SemID pattern '{code.__class__}"),
    (header(pattern="{level}{code}{code:>400000000}"), "SemID pattern"),
    (header(pattern="{level}{code!r}"), "SemID pattern"),
    (header(pattern="{level}{code}" + "x" * 10**6), "SemID pattern"),
    (header(codebook_sizes=[10**12, 6, 4]), "codes are more than"),
    (header(codebook_sizes=[6] * 10**5), "at most 1024"),
    (header(codebook_sizes=[6, 6.0, 4]), "codebook_sizes"),
    (header(codebook_sizes=[0, 6, 4]), "codebook_sizes"),
    (header(behaviours=[1]), "behaviours and vocabularies should be lists of texts"),
    (header(vocabularies=[["a"]], vocabulary_of_level=[0, 0, 1]), "vocabulary_of_level"),
    (header(adds_tokens=1), "adds_tokens is 1"),
    (header(code="import os"), "which llmrec does not write"),
    (info(reserved={"x": [[9, 9, 9]]}), "info.reserved['x']"),
    (info(version="2"), "info.version is '2'"),
    (info(views={"a": [0, 9]}), "info.views['a']"),
    (info(item_tokenizer=[]), "info.item_tokenizer"),
]


@pytest.mark.parametrize("change, said", SEMIDS_DAMAGE)
def test_semids_that_do_not_fit(folder, change, said):
    pq.write_table(change(pq.read_table(folder / SEMIDS)), folder / SEMIDS)
    refused(folder, SEMIDS, said)


def test_rows_of_one_item_may_differ(tmp_path):
    data = tiny_data()
    index = tiny_index(data)
    more = index.replaced([*index.item_ids, "item-00"], np.concatenate([index.codes, [[5, 5, 3]]]))
    more.save(tmp_path / SEMIDS, data.items)
    assert SemIDIndex.load(tmp_path / SEMIDS).rows("item-00") == [0, 24]


# llmrec_config.json


CONFIG_DAMAGE = [
    ({"num_beams": -1}, "num_beams"),
    ({"num_beams": 10**9}, "num_beams is 1000000000, it should be at most"),
    ({"num_beams": "50"}, "num_beams"),
    ({"max_history": 0}, "max_history"),
    ({"max_history": 10**9}, "max_history"),
    ({"max_thought_tokens": 10**9}, "max_thought_tokens"),
    ({"variations": 10**9}, "variations"),
    ({"thought_temperature": None}, "thought_temperature"),
    ({"normalize": "softmax"}, "normalize"),
    ({"prompt": []}, "prompt is []"),
    ({"prompt": {"task": "next_item"}}, "missing fields ['templates']"),
    ({"prompt": {"task": "no_task", "templates": [{"prompt": "a", "completion": "{target}"}]}}, "no_task"),
    ({"prompt": {"task": "next_item", "templates": [{"prompt": "{history.x}", "completion": "{target}"}]}}, "slot"),
    ({"prompt": {"task": "next_item", "templates": [{"prompt": "{x:>99999999}", "completion": "{target}"}]}}, "slot"),
    ({"prompt": {"task": "next_item", "templates": [{"prompt": "{secret}", "completion": "{target}"}]}}, "secret"),
    ({"fuse": [1]}, "fuse"),
    ({"bos": "yes"}, "bos"),
    ({"trained_on": None}, "trained_on"),
    ({"colour": "red"}, "unknown fields ['colour']"),
    ({"semid_fingerprint": "0" * 16}, "is not the one the model was trained with"),
]


@pytest.mark.parametrize("fields, said", CONFIG_DAMAGE)
def test_settings_that_do_not_fit(folder, fields, said):
    edit(folder / CONFIG, **fields)
    refused(folder, said)


# Weights and tokenizer


def without_a_layer(weights: dict) -> dict:
    return {name: value for name, value in weights.items() if ".layers.1." not in name}


WEIGHTS = [
    (without_a_layer, "config.json describes a model of"),
    (lambda weights: weights | {"model.norm.weight": torch.ones(300)}, "model.norm.weight"),
    (lambda weights: weights | {"model.more.weight": torch.ones(3)}, "model.more.weight"),
    (lambda weights: {name.replace("norm", "form"): value for name, value in weights.items()}, "missing keys"),
]


@pytest.mark.parametrize("change, said", WEIGHTS)
def test_weights_that_do_not_fit(folder, change, said):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    refused(folder, str(folder), said)
    with pytest.raises(ValueError, match=said):  # nor is training begun from it
        load_base(str(folder), ModelConfig(dtype="float32"), SFTConfig(str(folder), use_cpu=True, bf16=False))


@pytest.mark.parametrize("fields", [
    {"num_hidden_layers": 10**9}, {"hidden_size": 2**20}, {"vocab_size": 10**12}, {"intermediate_size": 10**9},
    {"num_hidden_layers": -1}, {"num_attention_heads": 0}, {"hidden_size": "wide"}, {"model_type": "nothing"},
    {"hidden_act": "os.system"}, {"num_hidden_layers": 1},
])  # fmt: skip
def test_a_model_that_the_weights_do_not_fill(folder, fields):
    edit(folder / "config.json", **fields)
    refused(folder, "config.json")


def test_no_pickle_and_no_code_is_read(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    refused(folder, str(folder))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    edit(folder / "config.json", auto_map=names)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    LLMRecommender.from_pretrained(folder)
    edit(folder / "config.json", model_type="evil")
    refused(folder, "config.json")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none(folder, content):
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "tokenizer.json")


NO_TOKENIZER = ["{}", "[]", '{"name": []}', '{"name": "os"}', '{"name": "rq_kmeans"}', '{"name": "pq", "config": 3}']


@pytest.mark.parametrize("content", [*NO_TOKENIZER, "[" * 100_000])
def test_an_item_tokenizer_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="config.json"):
        load_item_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        ItemFeatures.from_pretrained(tmp_path)


# Checksums


def test_what_was_written_is_known(tmp_path):
    data = tiny_data()
    folder = write_tiny_base(tmp_path / "model", data, tiny_index(data))
    noted = json.loads((folder / CHECKSUMS).read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json", SEMIDS} <= {*noted} and CONFIG not in noted
    edit(folder / CONFIG, num_beams=11)
    recommender = LLMRecommender.from_pretrained(folder)
    recommender.save_pretrained(tmp_path / "copy")
    assert LLMRecommender.from_pretrained(tmp_path / "copy").config.num_beams == 11
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors is missing, or not what was written")
    with pytest.raises(ValueError, match="model.safetensors is missing"):  # nor noted anew in a copy
        update_model_folder(folder, tiny_index(data), data.items, tmp_path / "updated")
    assert not (tmp_path / "updated").exists()
    for outside in ("../model/config.json", "/etc/hostname"):
        edit(folder / CHECKSUMS, **{outside: "0" * 64})
        refused(folder, CHECKSUMS)
        (folder / CHECKSUMS).write_text("{}")


def damaged(folder: Path, scratch: Path, seed: int, number: int, checked: bool) -> dict:
    command = [sys.executable, SCRIPT, folder, scratch, str(seed), str(number), str(int(checked))]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-3000:])
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("checked", [True, False])
def test_folders_damaged_at_random(tmp_path, checked):
    data = tiny_data()
    folder = write_tiny_base(tmp_path / "model", data, tiny_index(data))
    came = damaged(folder, tmp_path, 0, 40, checked)
    assert came["refused"] > 10 and sum(came.values()) == 40


@pytest.mark.slow
@pytest.mark.parametrize("checked", [True, False])
def test_very_many_folders_damaged_at_random(tmp_path, checked):
    data = tiny_data()
    folder = write_tiny_base(tmp_path / "model", data, tiny_index(data))
    assert sum(damaged(folder, tmp_path, 1, 2500, checked).values()) == 2500


def test_a_folder_of_links_is_one_as_the_cache_of_the_hub_has_it(folder, tmp_path):
    linked = tmp_path / "snapshots" / "main"
    for file in (path for path in folder.rglob("*") if path.is_file()):
        link = linked / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    history = [["item-01", "item-02"]]
    one, other = (LLMRecommender.from_pretrained(each) for each in (folder, linked))
    assert one.recommend(history, 3) == other.recommend(history, 3)
