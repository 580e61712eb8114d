"""Errors that people make with llmrec, as the commands that make them; tests/user_errors.yaml has what they read.

Paths are relative to a folder of a tiny store: data/, semids/, base/ (a model that has learned nothing), begun/ (a run
that was stopped), and shop/ with two CSV files.
"""

import os
import runpy
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.stages import begin_stage

ROOT = Path(__file__).parents[1]
LOG = "customer,sku,when\n" + "".join(f"u{u},{(u + step) % 5},{step}\n" for u in range(6) for step in range(4))
ITEMS = "sku,name,price\n" + "".join(f"{item},Pen {item},{item}.5\n" for item in range(5))
BASE = {
    "prepare_data": {
        "output_dir": "made",
        "source": "table",
        "source_args": {
            "interactions": "shop/log.csv",
            "items": "shop/items.csv",
            "columns": {"user_id": "customer", "item_id": "sku", "timestamp": "when"},
            "item_columns": {"item_id": "sku", "title": "name"},
        },
    },
    "tokenize_items": {
        "data_dir": "data",
        "output_dir": "made",
        "features": [{"kind": "text", "encoder": "tfidf"}],
        "tokenizer": "rq_kmeans",
        "tokenizer_args": {"codebook_sizes": [8, 8]},
    },
    "init_model": {
        "data_dir": "data",
        "semids": "semids",
        "output_dir": "made",
        "model_config": {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 1},
    },
    "sft": {
        "data_dir": "data",
        "model_name_or_path": "base",
        "output_dir": "made",
        "max_steps": 1,
        "max_length": 128,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    },
    "grpo": {
        "data_dir": "data",
        "model_name_or_path": "base",
        "output_dir": "made",
        "max_steps": 1,
        "num_generations": 4,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    },
    "recommend": {"model": "base", "data_dir": "data"},
    "evaluate": {"data_dir": "data", "output_dir": "made", "recommenders": {"ours": "base"}, "max_rows": 2},
    "train_recommender": {"data_dir": "data", "output_dir": "made", "kind": "item_knn"},
}


@dataclass
class Case:
    """`python recipes/<recipe>.py --config x.yaml <flags>`, where the YAML holds `BASE` and `settings` (or is `text`),
    and `files` are written before; or `python`, which is called with the folder."""

    what: str
    recipe: str = ""
    flags: str = ""
    settings: dict = field(default_factory=dict)
    files: dict[str, str | bytes] = field(default_factory=dict)
    text: str | bytes | None = None
    python: Callable | None = None
    source: dict = field(default_factory=dict)


def _shop(what: str, log: str | bytes = LOG, items: str | bytes = ITEMS, **source) -> Case:
    return Case(what, "prepare_data", files={"shop/log.csv": log, "shop/items.csv": items}, source=source)


def _prompt(what: str, asked: str) -> Case:
    mine = {"task": "next_item", "templates": [{"prompt": asked, "completion": "{target}"}]}
    return Case(what, "sft", settings={"tasks": ["mine.yaml"]}, files={"mine.yaml": yaml.safe_dump(mine)})


def _recommender(folder: Path):
    from llmrec import LLMRecommender

    return LLMRecommender.from_pretrained(folder / "base", device="cpu")


def _frame(folder: Path):
    from llmrec.data import prepare

    return prepare([{"user_id": "a"}], [{"item_id": "b"}])


def _filter(folder: Path):
    from llmrec import Filter

    return _recommender(folder).recommend([["item-01"]], 3, Filter(where=[("prize", "<", 3)]))


ABOUT = [{"about": "item-03"}]
CASES = [
    # The command line
    Case("a flag cut short", "sft", "--learning_rat 1e-3"),
    Case("a flag misspelt", "recommend", "--num_user 3"),
    Case("a flag of another recipe", "recommend", "--num_beams 5"),
    Case("a word for a number", "recommend", "--k five"),
    Case("a fraction for a whole number", "recommend", "--k 2.5"),
    Case("a list of no items", "recommend", "--k 0"),
    Case("a search of no width", "sft", "--num_beams 0"),
    Case("a learning rate below zero", "sft", "--learning_rate -1"),
    Case("a learning rate that is none", "sft", "--learning_rate fast"),
    Case("a history of no items", "sft", "--max_history 0"),
    Case("no steps to train", "sft", "--max_steps 0"),
    Case("dropout of everything", "sft", "--hidden_dropout 1"),
    Case("a batch of no rows", "evaluate", "--batch_size 0"),
    Case("a negative count", "prepare_data", "--user_k -1"),
    Case("neither true nor false", "prepare_data", "--clean maybe"),
    Case("a flag without its value", "recommend", "--k"),
    Case("a word that belongs to no flag", "recommend", "item-03"),
    Case("a scheduler that does not exist", "sft", "--lr_scheduler_type linaer"),
    Case("a list as JSON that is none", "recommend", "--where price<3"),
    Case("what is needed is missing", "recommend", text="k: 3"),
    # The YAML
    Case("a configuration that is not there", "recommend", "--config x.yml"),
    Case("--config without a path", "recommend", "--config", text="--"),
    Case("a folder as configuration", "recommend", "--config shop"),
    Case("a setting misspelt", "recommend", settings={"num_usres": 3}),
    Case("YAML with a tab", "recommend", text="model: base\n\tk: 3\n"),
    Case("YAML that is not closed", "recommend", text="users: [a, b\nk: 3\n"),
    Case("YAML that is a list", "recommend", text="- model: base\n"),
    Case("YAML that is not UTF-8", "recommend", text="model: b\xfcro\n".encode("latin-1")),
    Case("a setting twice", "recommend", text="model: base\ndata_dir: data\nk: 3\nk: 5\n"),
    Case("a number for a text", "recommend", settings={"model": 7}),
    Case("a text for a list", "recommend", settings={"users": "user-1"}),
    Case("nothing behind a colon", "recommend", settings={"k": None}),
    Case("a list for a mapping", "prepare_data", settings={"source_args": ["shop"]}),
    # Data
    _shop("a column that is called otherwise", columns={"user_id": "client", "item_id": "sku"}),
    _shop("columns that nobody mapped", columns={"item_id": "sku"}),
    _shop("another separator", delimiter=";"),
    _shop("a file that is not there", interactions="shop/orders.csv"),
    _shop("a folder without tables", interactions="empty"),
    Case("an Excel file", "prepare_data", files={"shop/log.xlsx": b"PK"}, source={"interactions": "shop/log.xlsx"}),
    _shop("another encoding", items="sku,name\n1,B\xfcro\n".encode("latin-1")),
    _shop("no header", log=LOG.partition("\n")[2]),
    _shop("the header twice", log=LOG + "customer,sku,when\n"),
    _shop("a column twice", log=LOG.replace("when", "sku", 1)),
    _shop("an item twice", items=ITEMS + "3,Pen 3 again,1\n"),
    _shop("an id that is missing", log=LOG + ",3,9\n"),
    _shop("an item that is not in the catalogue", log=LOG + "u1,99,9\n"),
    _shop("a row with a comma too many", items=ITEMS + "7,Pens, red,1.5\n"),
    _shop("a quote that is not closed", items=ITEMS + '7,"Pens,1.5\n'),
    _shop("prices with a currency", items=ITEMS.replace("0.5", "0.50 EUR")),
    _shop("dates in another form", log=LOG.replace(",0\n", ",07.04.2024\n")),
    _shop("milliseconds", log=LOG.replace(",0\n", ",1712486400000\n")),
    _shop("an empty file", log=""),
    _shop("an argument that the source does not have", seperator=";"),
    Case("an unknown source", "prepare_data", "--source tables"),
    Case("nothing left", "prepare_data", "--user_k 50"),
    Case("a split that does not exist", "prepare_data", "--split random"),
    Case(
        "a split by time without times",
        "prepare_data",
        "--split time",
        source={"columns": {"user_id": "customer", "item_id": "sku"}},
    ),
    Case("a variable that is not set", "prepare_data", source={"items": "${NO_SUCH_FOLDER}/items.csv"}),
    # The order of stages, folders, disks
    Case("Semantic IDs before data", "tokenize_items", "--data_dir nowhere"),
    Case("a model before Semantic IDs", "init_model", "--semids nowhere"),
    Case("training before a model", "sft", "--model_name_or_path nowhere"),
    Case("training of no model", "sft", settings={"model_name_or_path": None}),
    Case("evaluation before a model", "evaluate", settings={"recommenders": {"ours": "nowhere/model"}}),
    Case("a run that was stopped", "recommend", "--model begun"),
    Case("a folder that is no model", "recommend", "--model data"),
    Case("a folder of folders", "evaluate", settings={"recommenders": {"ours": "."}}),
    Case("other settings in the same folder", "tokenize_items", "--output_dir begun"),
    Case("an output folder that is a file", "tokenize_items", "--output_dir shop/log.csv"),
    Case("an output folder of somebody else", "tokenize_items", "--output_dir shop"),
    Case("a folder that cannot be made", "tokenize_items", "--output_dir /dev/null/made"),
    Case("data of another catalogue", "recommend", "--data_dir other"),
    Case("a user that is not there", "recommend", "--users nobody"),
    # Parts by name
    Case("an item tokenizer misspelt", "tokenize_items", "--tokenizer rq_kmean"),
    Case("an argument that no tokenizer has", "tokenize_items", settings={"tokenizer_args": {"codebooks": 3}}),
    Case("features misspelt", "tokenize_items", settings={"features": [{"kind": "texts"}]}),
    Case(
        "a column of features that is not there",
        "tokenize_items",
        settings={"features": [{"kind": "text", "encoder": "tfidf", "columns": ["colour"]}]},
    ),
    Case("neither pretrained nor from scratch", "init_model", settings={"model_config": None}),
    Case("an architecture that does not exist", "init_model", settings={"model_config": {"model_type": "qwen9"}}),
    Case(
        "a model that the Hub does not have",
        "init_model",
        settings={"model_config": None, "model_name_or_path": "nobody/no-such-model"},
    ),
    Case("a task misspelt", "sft", settings={"tasks": ["next_itme"]}),
    _prompt("a prompt with an unknown slot", "After {histroy}?"),
    _prompt("a prompt that shows its answer", "Say {target}"),
    Case("a task that cannot recommend", "sft", "--recommend_prompt item_to_title"),
    Case("rows longer than max_length", "sft", "--max_length 4"),
    Case("a reward misspelt", "grpo", settings={"rewards": ["exact_hits"]}),
    Case("a reward in no module", "grpo", settings={"rewards": ["my_rewards.mine"]}),
    Case("a kind of recommender misspelt", "train_recommender", "--kind item_kn"),
    Case("a setting of a recommender misspelt", "train_recommender", settings={"settings": {"neighbour": 3}}),
    # Python
    Case("one history for a list of histories", python=lambda at: _recommender(at).recommend(["item-01", "item-02"])),
    Case("an item that the model does not know", python=lambda at: _recommender(at).recommend([["item-99"]])),
    Case("no items asked for", python=lambda at: _recommender(at).recommend([["item-01"]], k=0)),
    Case("an item in words", python=lambda at: _recommender(at).generate_text("title_to_item", ABOUT)),
    Case("words as an item", python=lambda at: _recommender(at).ask("item_to_title", ABOUT)),
    Case("a filter on a column that is not there", python=_filter),
    Case("a list as a table", python=_frame),
]


def make_world(folder: Path) -> Path:
    data = tiny_data()
    data.save(folder / "data")
    tiny_data(num_items=30).save(folder / "other")
    index = tiny_index(data)
    index.save(folder / "semids" / "semids.parquet", data.items)
    write_tiny_base(folder / "base", data, index)
    (folder / "begun").mkdir()
    begin_stage(folder / "begun", {"learning_rate": 1.0}, writes=False)
    (folder / "begun" / "checkpoint-3").mkdir()
    (folder / "begun" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    (folder / "shop").mkdir()
    (folder / "empty").mkdir()
    return folder


def error_of(case: Case, folder: Path) -> BaseException | None:
    """What a case raises; its files lie in `folder`, which is the working directory."""
    shutil.rmtree(folder / "made", ignore_errors=True)
    for name, content in {"shop/log.csv": LOG, "shop/items.csv": ITEMS, **case.files}.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    argv, before = [case.recipe], (sys.argv, os.getcwd())
    if case.recipe:
        settings = {**BASE[case.recipe], **case.settings}
        if case.source:
            settings["source_args"] = {**settings["source_args"], **case.source}
        text = yaml.safe_dump(settings) if case.text is None else case.text
        (folder / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        argv += [] if "--config" in case.flags else ["--config", "x.yaml"]
        argv += shlex.split(case.flags)
    try:
        os.chdir(folder)
        sys.argv = argv
        if case.python is not None:
            case.python(folder)
        else:
            runpy.run_path(str(ROOT / "recipes" / f"{case.recipe}.py"), run_name="__main__")
    except (Exception, SystemExit) as error:
        return error
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
    return None


def printed(error: BaseException) -> str:
    """What Python alone prints of an error: how many lines, and the last."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return f"{len(lines)} lines, the last: {lines[-1]}"
