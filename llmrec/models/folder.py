"""One folder = one recommender: what lies beside the weights and the tokenizer.

semids.parquet       SemIDIndex with the items' columns
llmrec_config.json   prompt, lengths, beams, and the hashes of what the model was trained with
provenance.json      what it was made of, stage by stage (`llmrec.models.provenance`)
checksums.json       SHA-256 of the files that decide what is recommended, but for llmrec_config.json
item_tokenizer/      the fitted item tokenizer, if there is one
dense/               a dense head (`llmrec.models.dense`), if there is one
"""

import logging
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_origin, get_type_hints

import pyarrow as pa
from transformers import GenerationConfig, PreTrainedTokenizerBase

import llmrec
from llmrec.arguments import at_least, one_of
from llmrec.catalogue.record import CONTEXTUAL
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.prepared import PreparedData
from llmrec.decoding.dense import MODES
from llmrec.files import file_sha256, is_fingerprint_of, read_json, read_parquet, sizes_of, write_json
from llmrec.item_tokenizers import SequenceTokenizer, load_item_tokenizer
from llmrec.item_tokenizers.contextual.sequence_tokenizer import VARIATIONS
from llmrec.stages import unfinished

logger = logging.getLogger(__name__)
CONFIG = "llmrec_config.json"
SEMIDS = "semids.parquet"
ITEM_TOKENIZER = "item_tokenizer"
DENSE = "dense"
CARD = "README.md"
CHECKSUMS = "checksums.json"
_CHECKED = (
    SEMIDS,
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)
_MOST = {"max_history": 2**20, "num_beams": 2**16, "variations": 1000, "thoughts": 1000, "max_thought_tokens": 2**20}


@dataclass
class RecommenderConfig:
    """How a model folder recommends.

    Args:
        prompt: the `Prompt` that asks for the next item; a run uses one from SFT to serving.
        max_history: items of the history that the prompt shows, the newest ones.
        num_beams: width of the search; raised to k where a request wants more items.
        normalize: `"vocabulary"` or `"catalogue"` (see `llmrec.decoding`).
        fuse: views of Semantic IDs that are searched, each with the prompt in its own, and fused; empty: the view of
            the prompt alone.
        variations: of a context-aware item tokenizer: random ways of writing the history that are asked, each with its
            own prompt, and fused; 0 is the usual way, without chance, which training does not show.
        dense: what is done with the scores of the folder's dense head: `"rank"`, `"cold"` or `"alone"`
            (`llmrec.decoding.dense.MODES`); empty: nothing.
        behaviour: the kind of interaction that is recommended where the index has behaviours; empty: its last.
        thoughts: of a thinking prompt: rationales that are written before the search. One is greedy, several are
            sampled, 0 is the empty thought.
        max_thought_tokens: the longest rationale; it is closed there.
        bos: prompts without a chat template begin as the tokenizer begins a text (BOS). Folders that do not say it
            were trained without.
        semid_fingerprint, catalogue_fingerprint: what the model was trained with; others are refused.
        trained_on: name and fingerprint of the data.
    """

    prompt: dict
    max_history: int = 20
    num_beams: int = 50
    normalize: str = "vocabulary"
    fuse: list[str] = field(default_factory=list)
    variations: int = 0
    dense: str = ""
    behaviour: str = ""
    thoughts: int = 1
    max_thought_tokens: int = 128
    thought_temperature: float = 1.0
    bos: bool = True
    semid_fingerprint: str = ""
    catalogue_fingerprint: str = ""
    trained_on: dict = field(default_factory=dict)
    llmrec_version: str = llmrec.__version__

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            kind, value = get_origin(kind) or kind, getattr(self, name)
            if kind not in (int, float) and not isinstance(value, kind):
                raise ValueError(f"{name} is {value!r:.80}, it should be a {kind.__name__}")
        if not all(isinstance(view, str) for view in self.fuse):
            raise ValueError(f"fuse is {self.fuse!r:.80}, it should be names of views")
        least = {"max_history": 1, "num_beams": 1, "variations": 0, "thoughts": 0, "max_thought_tokens": 1}
        at_least(self, **least, thought_temperature=0.0)
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}, it should be at most {most}")
        one_of(self.dense, ("", *MODES), "dense")
        one_of(self.normalize, ("vocabulary", "catalogue"), "normalize")

    @classmethod
    def load(cls, folder: str | Path) -> "RecommenderConfig":
        path = Path(folder) / CONFIG
        if not path.exists():
            neither = (
                f"{folder} is no llmrec model folder: it has no {CONFIG}"
                if Path(folder).is_dir()
                else f"{folder} does not exist: run what makes it first (a model: recipes/init_model.py or "
                "recipes/sft.py, baselines: recipes/train_baselines.py)"
            )
            raise ValueError(unfinished(folder) or neither)
        fields = read_json(path)
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown or "prompt" not in fields:
            raise ValueError(f"{path}: unknown fields {unknown}" if unknown else f"{path} has no prompt")
        try:
            return cls(**{"bos": False, **fields})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def of(cls, data: PreparedData, index: SemIDIndex, variations: int | None = None, **fields) -> "RecommenderConfig":
        """Of what a model is made of. `variations` are by default `VARIATIONS` of a contextual index, but for a prompt
        in `stream` format, which trains on one way; those of another index, or fewer than 0, raise `ValueError`."""
        if variations is None:
            variations = VARIATIONS if index.contextual and fields["prompt"].get("format") != "stream" else 0
        elif variations < 0 or (variations and not index.contextual):
            made_by = f"these Semantic IDs are of {index.item_tokenizer!r}"
            raise ValueError(
                f"variations: {variations} should be at least 0, and is for item tokenizers that write a history in "
                f"several ways ({', '.join(CONTEXTUAL)}); {made_by}: leave it out"
            )
        return cls(
            variations=variations,
            semid_fingerprint=index.fingerprint,
            catalogue_fingerprint=data.catalogue_fingerprint,
            trained_on={"name": data.info.get("name", ""), "fingerprint": data.fingerprint},
            **fields,
        )

    def check_catalogue(self, items: pa.Table, folder: str | Path) -> None:
        """Raises `ValueError` if a catalogue is not the one that the folder was made for."""
        recorded = self.catalogue_fingerprint
        if recorded and not is_fingerprint_of(recorded, items.select(["item_id"])):
            raise ValueError(
                f"{folder} was made for another catalogue than the given data: "
                "use the data it was made with, or run recipes/init_model.py again"
            )


def semids_table(folder: str | Path) -> pa.Table:
    """The table of `semids.parquet`: item_id, semid, codes and the items' own columns; `ValueError` where it has no
    column of titles."""
    path = Path(folder) / SEMIDS
    table = read_parquet(path)
    if "title" not in table.column_names or table["title"].type != pa.string():
        raise ValueError(f"{path} has no column 'title' of texts; it has {table.schema.names}")
    return table


def write_checksums(folder: str | Path) -> None:
    """Notes what is in a model folder now, so that whoever loads it can tell a damaged file."""
    folder = Path(folder)
    write_json(
        folder / CHECKSUMS, {name: file_sha256(folder / name) for name in sizes_of(folder) if _is_checked(name)}
    )


def check_checksums(folder: str | Path) -> None:
    """Raises `ValueError` naming a file of a model folder that is not what it was when the folder was written. Folders
    of older versions note nothing."""
    path = Path(folder) / CHECKSUMS
    if not path.exists():
        return
    for name, noted in read_json(path).items():
        file = path.parent / name
        if not _is_checked(name) or ".." in file.parts[len(path.parent.parts) :]:  # a Hub's cache links its files
            raise ValueError(f"{path} names {name!r}, which is no file of the folder that it is about")
        if not file.is_file() or file_sha256(file) != noted:
            raise ValueError(
                f"{file} is missing, or not what was written: restore it, or remove {path} if you changed it"
            )


def _is_checked(name: str) -> bool:
    """Not what people edit (the settings of the search, the card), and not what a run leaves beside the model."""
    first, *deeper = Path(name).parts
    if deeper:
        return first in (ITEM_TOKENIZER, DENSE)
    return first in _CHECKED or (first.endswith(".safetensors") and not first.startswith("adapter"))


def write_sidecars(
    folder: str | Path,
    config: RecommenderConfig,
    index: SemIDIndex,
    items: pa.Table,
    item_tokenizer: Path | None = None,
) -> None:
    """Makes a folder that holds weights and tokenizer a recommender; `items` may be the table of another folder.

    Without a dense head in it (one that was fitted on other weights does not come along) `config.dense` is off."""
    folder = Path(folder)
    if config.dense and not (folder / DENSE).is_dir():
        logger.warning("%s has no dense head for its weights, so dense is off: run recipes/fit_dense.py", folder)
        config = replace(config, dense="")
    index.save(folder / SEMIDS, items.drop_columns([c for c in ("semid", "codes") if c in items.column_names]))
    if item_tokenizer is not None and item_tokenizer.is_dir():
        shutil.copytree(item_tokenizer, folder / ITEM_TOKENIZER, dirs_exist_ok=True)
    write_json(folder / CONFIG, asdict(config))
    write_checksums(folder)


def plain_generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy and unpenalised: an Instruct checkpoint's own sampling defaults filter constrained beams away."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    pad = pad if pad is not None else eos
    return GenerationConfig(do_sample=False, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)


def load_index(folder: str | Path, config: RecommenderConfig) -> SemIDIndex:
    """The folder's Semantic IDs, refused where they are not those that the model was trained with."""
    index = SemIDIndex.load(Path(folder) / SEMIDS)
    if config.semid_fingerprint and index.fingerprint != config.semid_fingerprint:
        raise ValueError(
            f"{folder}: semids.parquet ({index.fingerprint}) is not the one the model was trained with "
            f"({config.semid_fingerprint}); restore it, or train again with recipes/sft.py"
        )
    return index


def load_parts(folder: str | Path, config: RecommenderConfig) -> tuple[SemIDIndex, pa.Table, SequenceTokenizer | None]:
    """What a folder holds beside the model: its index, its items, and its item tokenizer if that reads histories.
    Raises `ValueError` naming the file of the folder that is damaged or does not fit."""
    index, items = load_index(folder, config), semids_table(folder)
    check_checksums(folder)
    return index, items, load_item_tokenizer(Path(folder) / ITEM_TOKENIZER, own=False) if index.contextual else None
