import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import tiny_data
from trl import TrlParser

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.features import ItemFeatures
from llmrec.item_tokenizers import add_items, load_item_tokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/semids.yaml"))

spec = importlib.util.spec_from_file_location("tokenize_items_recipe", ROOT / "recipes" / "tokenize_items.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe
spec.loader.exec_module(recipe)


def run(*arguments):
    recipe.main(TrlParser((recipe.TokenizeArguments,)).parse_args_and_config(args=list(map(str, arguments)))[0])


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture
def config(tmp_path, data):
    data.save(tmp_path / "data")
    settings = {
        "data_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "semids"),
        "cache_dir": str(tmp_path / "cache"),
        "features": [{"kind": "text", "encoder": "tfidf", "dim": 8}, {"kind": "cooccurrence", "dim": 4}],
        "tokenizer_args": {"codebook_sizes": [4, 4]},
    }
    path = tmp_path / "semids.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_semids_reuse_refusal_and_new_items(config, tmp_path, data, capsys):
    run("--config", config)
    printed = capsys.readouterr().out
    assert "text (tfidf) + cooccurrence, 24 items x 12" in printed and "<a_" in printed
    folder = tmp_path / "semids"
    index = SemIDIndex.load(folder / "semids.parquet")
    assert index.items == data.items["item_id"].to_pylist()
    assert index.info["features"][0]["encoder"] == "tfidf"
    assert json.loads((folder / "report" / "report.json").read_text())["fingerprint"] == index.fingerprint

    run("--config", config)
    assert "Reusing" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings .collision.: pass --overwrite true"):
        run("--config", config, "--collision", "append")
    run("--config", config, "--overwrite", "true")
    assert SemIDIndex.load(folder / "semids.parquet").fingerprint == index.fingerprint  # deterministic

    # Everything that new items need is in the folder.
    features = ItemFeatures.from_pretrained(folder / "item_tokenizer" / "features")
    np.testing.assert_array_equal(features.encode(data.items), np.load(folder / "features.npy"))
    new = data.items.slice(0, 3).set_column(0, "item_id", [["n1", "n2", "n3"]])
    grown = add_items(index, load_item_tokenizer(folder / "item_tokenizer"), features.encode(new), ["n1", "n2", "n3"])
    assert all(grown.encode(item) == index.encode(item) for item in index.items) and len(grown) == 27


def test_ready_made_and_unknown_tokenizer(config, tmp_path, data, capsys):
    semids = {item: [f"<a_{i // 2}>", f"<b_{i % 2}>"] for i, item in enumerate(data.items["item_id"].to_pylist())}
    (tmp_path / "shop.index.json").write_text(json.dumps(semids))
    run("--config", config, "--ready_made", tmp_path / "shop.index.json")
    assert "<a_1><b_0>  blue gadget number 2" in capsys.readouterr().out
    assert not (tmp_path / "semids" / "item_tokenizer").exists()
    semids["item-00"], semids["item-02"] = semids["item-02"], semids["item-00"]
    (tmp_path / "shop.index.json").write_text(json.dumps(semids))
    with pytest.raises(ValueError, match="other settings .files."):
        run("--config", config, "--ready_made", tmp_path / "shop.index.json")
    with pytest.raises(ValueError, match="'kmeans' is not one of rq_kmeans, .*: did you mean 'rq_kmeans'?"):
        run("--config", config, "--tokenizer", "kmeans", "--overwrite", "true")
    assert SemIDIndex.load(tmp_path / "semids" / "semids.parquet").encode("item-02")  # a typo removes nothing


@pytest.mark.parametrize(
    ("flags", "fields", "message"),
    [
        (
            [],
            {"tokenizer_args": {"codebook_size": 4}},
            "tokenizer_args of 'rq_kmeans': there is no argument 'codebook_size'",
        ),
        (
            [],
            {"tokenizer_args": {"codebook_sizes": 4}},
            "codebook_sizes=4 must be a list with a number for every level",
        ),
        (
            [],
            {"features": [{"kind": "text", "encoder": "tfidf", "wieght": 2}]},
            "encoder 'tfidf': .* 'wieght'; it takes",
        ),
        (
            [],
            {"features": [{"kind": "cooccurrence", "dims": 2}]},
            "'cooccurrence': there is no argument 'dims'; it takes",
        ),
        (["--collision", "last"], {}, "collision policy 'last' is not one of auto"),
        (["--tokenizer", "pctx", "--collision", "keep"], {"tokenizer_args": {}}, "'pctx' tells items apart itself"),
    ],
)
def test_misspelt_settings_are_refused_before_anything_is_read_or_written(config, tmp_path, flags, fields, message):
    settings = yaml.safe_load(config.read_text()) | fields
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=message):
        run("--config", config, *flags)
    assert not (tmp_path / "semids").exists()


def test_a_changed_prompt_of_tags_is_other_settings(config, tmp_path, data):
    tags = ["red lamp", "green chair", "blue table"]
    PreparedData(data.items.append_column("tags", [tags * 8]), data.train, data.valid, data.test).save(
        tmp_path / "data"
    )
    (tmp_path / "tags.yaml").write_text("task: item_tags\ntemplates: [{prompt: 'Tags of {item}', completion: ''}]\n")
    arguments = {"tags_column": "tags", "prompt": str(tmp_path / "tags.yaml")}
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**settings, "tokenizer": "tags", "tokenizer_args": arguments}))
    run("--config", config)
    run("--config", config)
    (tmp_path / "tags.yaml").write_text("task: item_tags\ntemplates: [{prompt: 'Words for {item}', completion: ''}]\n")
    with pytest.raises(ValueError, match="other settings .files."):
        run("--config", config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_configs_are_understood(path):
    (args,) = TrlParser((recipe.TokenizeArguments,)).parse_args_and_config(args=["--config", str(path)])
    assert args.data_dir == f"out/{path.parent.name}/data" and args.output_dir == f"out/{path.parent.name}/semids"
    assert recipe.TOKENIZERS[args.tokenizer](**args.tokenizer_args).name == args.tokenizer
    assert ItemFeatures(args.features).parts
