"""recipes/update_catalogue.py: the next version of a folder, and of the model that speaks its Semantic IDs."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import tiny_data, write_tiny_base
from trl import TrlParser

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.lifecycle import diff, remove_items
from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import join_views
from llmrec.features import ItemFeatures
from llmrec.item_tokenizers import Pctx, RQKMeans, build_semids, fit_semids
from llmrec.models.card import write_card
from llmrec.models.folder import semids_table
from llmrec.models.update import update_model_folder
from llmrec.recommenders import LLMRecommender

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("update_catalogue_recipe", ROOT / "recipes" / "update_catalogue.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe
spec.loader.exec_module(recipe)


def run(**flags):
    arguments = []
    for name, value in flags.items():
        arguments += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    recipe.main(TrlParser((recipe.UpdateArguments,)).parse_args_and_config(args=arguments)[0])


def contents(folder):
    """All but what a model's use remembers (`.self_check.json`)."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """What recipes/tokenize_items.py and recipes/init_model.py leave; a parquet of two new items and a changed one."""
    folder = tmp_path_factory.mktemp("update")
    features = ItemFeatures([{"kind": "text", "encoder": "tfidf", "dim": 8}]).fit(data.items, data.train, 0)
    matrix = features.encode(data.items)
    tokenizer = RQKMeans([4, 4], niter=5)
    index = fit_semids(tokenizer, matrix, data.items, data.train, collision="append")
    index.save(folder / "semids" / "semids.parquet", data.items)
    np.save(folder / "semids" / "features.npy", matrix)
    tokenizer.save_pretrained(folder / "semids" / "item_tokenizer")
    features.save_pretrained(folder / "semids" / "item_tokenizer" / "features")
    write_tiny_base(folder / "model", data, index)
    write_card(folder / "model")
    new = pa.table(
        {
            "item_id": ["new-1", "new-2", "item-05"],
            "title": ["red gadget number 77", "green <b>gadget</b> number 78", "blue gadget number 5"],
            "brand": ["brand 1", "brand 2", "brand 1"],
            "categories": ["Shop > red", "Shop > green", "Shop > blue"],
            "price": [1, 2, 99],
        }
    )
    pq.write_table(new, folder / "new.parquet")
    return folder


def test_the_next_version_and_its_model(folder, data, tmp_path, capsys):
    before = contents(folder)
    flags = {"semids": folder / "semids", "items": folder / "new.parquet", "model": folder / "model"}
    run(**flags, remove=["item-03"], output_dir=tmp_path / "two")
    printed = capsys.readouterr().out
    assert "Version 2: 2 items added, 1 removed, 0 moved" in printed and "too few to judge" in printed
    old = SemIDIndex.load(folder / "semids" / "semids.parquet")
    new = SemIDIndex.load(tmp_path / "two" / "semids.parquet")
    changes = diff(old, new)
    assert set(changes.added) == {"new-1", "new-2"} and set(changes.removed) == {"item-03"} and not changes.moved
    assert new.info["parent"] == old.fingerprint and new.info["changelog"] == [
        {"version": 2, "added": 2, "removed": 1}
    ]
    assert json.loads((tmp_path / "two" / "diff.json").read_text())["added"] == changes.added
    assert (tmp_path / "two" / "drift" / "report.md").exists()
    table = semids_table(tmp_path / "two")
    row = dict(zip(table["item_id"].to_pylist(), table.to_pylist()))
    assert row["new-2"]["title"] == "green gadget number 78" and row["new-2"]["semid_version"] == 2
    assert row["item-05"]["price"] == 99 and row["item-05"]["semid_version"] == 1
    matrix = dict(zip(table["item_id"].to_pylist(), np.load(tmp_path / "two" / "features.npy")))
    features = ItemFeatures.from_pretrained(tmp_path / "two" / "item_tokenizer" / "features")
    np.testing.assert_array_equal(matrix["item-07"], np.load(folder / "semids" / "features.npy")[7])
    np.testing.assert_array_equal(matrix["new-1"], features.encode(table.slice(0, 1))[0])

    theirs = LLMRecommender.from_pretrained(folder / "model")
    ours = LLMRecommender.from_pretrained(tmp_path / "two" / "model")
    histories = [["item-01", "item-02"], ["item-10"]]
    assert ours.prompts(histories) == theirs.prompts(histories)
    gone = [["item-03", "item-02"]]  # a removed item stays in histories, as the word that the model has learned
    assert ours.prompts(gone) == theirs.prompts(gone)
    assert ours.recommend(gone, 1, Filter(exclude_seen=True))[0][0].item_id not in ("item-02", "item-03")
    with pytest.raises(ValueError, match="'nobody' has no Semantic ID"):
        ours.recommend([["nobody"]])
    everything = [item.item_id for item in ours.recommend(histories[:1], k=25)[0]]
    assert sorted(everything) == sorted(new.items) and "item-03" not in everything
    only_new = ours.recommend([["new-1", "item-02"]], k=5, filters=Filter(allow=["new-1", "new-2"]))[0]
    assert sorted(item.item_id for item in only_new) == ["new-1", "new-2"]
    assert only_new[0].title.endswith(("77", "78"))
    ours.config.normalize = theirs.config.normalize = "vocabulary"
    shared = Filter(allow=["item-00", "item-20"])
    assert ours.recommend(histories, 2, shared)[0][0].item_id == theirs.recommend(histories, 2, shared)[0][0].item_id
    assert "2 items added, 1 removed" in (tmp_path / "two" / "model" / "README.md").read_text()
    assert contents(folder) == before

    run(**flags, remove=["item-03"], output_dir=tmp_path / "two")
    assert "Reusing" in capsys.readouterr().out
    # A later version: the removed item comes back with the SemID it had; a model of version 1 may follow at once.
    back = data.items.slice(3, 1)
    pq.write_table(back, tmp_path / "back.parquet")
    run(
        semids=tmp_path / "two", items=tmp_path / "back.parquet", model=folder / "model", output_dir=tmp_path / "three"
    )
    third = SemIDIndex.load(tmp_path / "three" / "semids.parquet")
    assert third.encode("item-03") == old.encode("item-03") and third.info["version"] == 3
    assert "item-03" in LLMRecommender.from_pretrained(tmp_path / "three" / "model").item_ids
    came = dict(zip(*(semids_table(tmp_path / "three")[name].to_pylist() for name in ("item_id", "semid_version"))))
    assert came["item-03"] == 1 and came["new-1"] == 2  # the item tokenizer was fitted on item-03: no newcomer
    assert json.loads((tmp_path / "three" / "drift" / "report.json").read_text())["items"]["new"] == 2


def test_a_model_that_was_trained_again_is_no_finished_update(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    flags = {"semids": folder / "semids", "model": tmp_path / "model", "output_dir": tmp_path / "two"}
    run(**flags, remove=["item-03"])
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(ValueError, match="other settings .model_fingerprint."):
        run(**flags, remove=["item-03"])


def test_semids_that_were_given_free_make_another_update(folder, tmp_path):
    run(semids=folder / "semids", remove=["item-03"], output_dir=tmp_path / "base")
    run(semids=tmp_path / "base", remove=["item-04"], output_dir=tmp_path / "next")
    run(semids=folder / "semids", remove=["item-03"], reuse=True, output_dir=tmp_path / "base", overwrite=True)
    with pytest.raises(ValueError, match="other settings .reserved_fingerprint."):
        run(semids=tmp_path / "base", remove=["item-04"], output_dir=tmp_path / "next")


def test_a_typo_can_be_corrected_and_yaml_may_read_ids_as_numbers(folder, tmp_path):
    with pytest.raises(ValueError, match="'item-99' has no Semantic ID"):
        run(semids=folder / "semids", remove=["item-99"], output_dir=tmp_path / "two")
    run(semids=folder / "semids", remove=["item-03"], output_dir=tmp_path / "two")
    table = semids_table(folder / "semids")
    numbered = table.set_column(0, "item_id", [list(map(str, range(24)))]).drop_columns(["semid", "codes"])
    index = SemIDIndex.load(folder / "semids" / "semids.parquet")
    index.replaced(numbered["item_id"].to_pylist(), index.codes).save(tmp_path / "n" / "semids.parquet", numbered)
    shutil.copy(folder / "semids" / "features.npy", tmp_path / "n")
    config = tmp_path / "update.yaml"
    config.write_text(f"semids: {tmp_path}/n\noutput_dir: {tmp_path}/three\nremove: [3, 4]\n")
    run(config=config)
    assert not {"3", "4"} & set(SemIDIndex.load(tmp_path / "three" / "semids.parquet").items)


def test_semids_without_a_next_version_are_named_before_anything_is_written(folder, data, tmp_path):
    index = SemIDIndex.load(folder / "semids" / "semids.parquet")
    join_views({"one": index, "two": index}).save(tmp_path / "joined" / "semids.parquet", data.items)
    matrix = np.load(folder / "semids" / "features.npy")
    tokenizer = Pctx(codebook_sizes=[4, 4], context_dim=4, feature_dim=4)
    contextual = fit_semids(tokenizer, matrix, data.items, data.train)
    contextual.save(tmp_path / "contextual" / "semids.parquet", data.items)
    tokenizer.save_pretrained(tmp_path / "contextual" / "item_tokenizer")
    bare = SemIDIndex(index.item_ids, index.codes, index.codebook_sizes, info={"collision": "keep"})
    bare.save(tmp_path / "ready_made" / "semids.parquet", data.items)
    for name, flags, message in (
        ("joined", {"items": folder / "new.parquet"}, "update one, two, and join the views again"),
        ("joined", {"remove": ["item-03"]}, "update one, two, and join the views again"),
        ("contextual", {"items": folder / "new.parquet"}, "'pctx' knows the items it was fitted with only"),
        ("ready_made", {"items": folder / "new.parquet"}, "ready_made has no item_tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            run(semids=tmp_path / name, output_dir=tmp_path / "out", **flags)
        assert not (tmp_path / "out").exists()


def test_refusals(folder, data, tmp_path):
    semids, new = folder / "semids", folder / "new.parquet"
    with pytest.raises(ValueError, match="must lie apart"):
        run(semids=semids, items=new, output_dir=semids, overwrite=True)
    with pytest.raises(ValueError, match="must lie apart"):
        run(semids=semids, items=new, output_dir=folder, overwrite=True)
    assert (semids / "semids.parquet").exists()
    with pytest.raises(ValueError, match="nothing to do"):
        run(semids=semids, output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="'item-99' has no Semantic ID"):
        run(semids=semids, remove=["item-99"], output_dir=tmp_path / "unknown")
    # Another item tokenizer than the one of the index.
    wrong = tmp_path / "wrong"
    (wrong / "item_tokenizer").mkdir(parents=True)
    for name in ("semids.parquet", "features.npy"):
        (wrong / name).write_bytes((semids / name).read_bytes())
    features = ItemFeatures.from_pretrained(semids / "item_tokenizer" / "features")
    features.save_pretrained(wrong / "item_tokenizer" / "features")
    RQKMeans([4, 4], niter=5).fit(features.encode(data.items), seed=9).save_pretrained(tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        (wrong / "item_tokenizer" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="not built with this item tokenizer"):
        run(semids=wrong, items=new, output_dir=tmp_path / "refused")
    assert not (tmp_path / "refused" / "semids.parquet").exists()


def test_a_model_follows_only_where_it_can(folder, data, tmp_path):
    index = SemIDIndex.load(folder / "semids" / "semids.parquet")
    codes = index.codes.copy()
    codes[[0, 1]] = codes[[1, 0]]
    with pytest.raises(ValueError, match="knows item 'item-00' as"):
        update_model_folder(folder / "model", index.replaced(index.item_ids, codes), data.items, tmp_path / "a")
    renamed = SemIDIndex(index.item_ids, index.codes, index.codebook_sizes, "openonerec", index.info)
    with pytest.raises(ValueError, match="other Semantic ID tokens"):
        update_model_folder(folder / "model", renamed, data.items, tmp_path / "b")
    matrix = np.load(folder / "semids" / "features.npy")
    other = build_semids(index.items, matrix, RQKMeans([4, 4], niter=5).fit(matrix, seed=9), "append")
    with pytest.raises(ValueError, match="another item tokenizer"):
        update_model_folder(folder / "model", other, data.items, tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")
    linked = tmp_path / "linked"
    fewer = remove_items(index, index.items[20:])
    update_model_folder(folder / "model", fewer, data.items.slice(0, 20), linked, hard_links=True)
    weights = "model.safetensors"
    assert (linked / weights).stat().st_ino == (folder / "model" / weights).stat().st_ino
    assert len(LLMRecommender.from_pretrained(folder / "model").item_ids) == 24
    assert len(LLMRecommender.from_pretrained(linked).item_ids) == 20
    with pytest.raises(ValueError, match="goes into a new folder"):
        update_model_folder(folder / "model", index, data.items, linked)
    with pytest.raises(ValueError, match="exactly the items"):
        update_model_folder(folder / "model", index, data.items.slice(1), tmp_path / "d")
