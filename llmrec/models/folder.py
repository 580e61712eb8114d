"""One folder = one recommender: what lies beside the weights and the tokenizer.

semids.parquet       SemIDIndex with the items' columns
llmrec_config.json   prompt, lengths, beams, and the hashes of what the model was trained with
item_tokenizer/      the fitted item tokenizer, if there is one
dense/               a dense head (`llmrec.models.dense`), if there is one
"""

import logging
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
from transformers import GenerationConfig, PreTrainedTokenizerBase

import llmrec
from llmrec.arguments import at_least, one_of
from llmrec.catalogue.record import CONTEXTUAL
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.prepared import PreparedData, catalogue_fingerprint
from llmrec.decoding.dense import MODES
from llmrec.files import read_json, read_parquet, write_json
from llmrec.item_tokenizers import SequenceTokenizer, load_item_tokenizer
from llmrec.item_tokenizers.contextual.sequence_tokenizer import VARIATIONS
from llmrec.stages import unfinished

logger = logging.getLogger(__name__)
CONFIG = "llmrec_config.json"
SEMIDS = "semids.parquet"
ITEM_TOKENIZER = "item_tokenizer"
DENSE = "dense"
CARD = "README.md"


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
        least = {"max_history": 1, "num_beams": 1, "variations": 0, "thoughts": 0, "max_thought_tokens": 1}
        at_least(self, **least, thought_temperature=0.0)
        one_of(self.dense, ("", *MODES), "dense")

    @classmethod
    def load(cls, folder: str | Path) -> "RecommenderConfig":
        path = Path(folder) / CONFIG
        if not path.exists():
            neither = (
                f"{folder} is no llmrec model folder: it has no {CONFIG}"
                if Path(folder).is_dir()
                else (f"{folder} does not exist: run recipes/init_model.py or recipes/sft.py first")
            )
            raise ValueError(unfinished(folder) or neither)
        fields = read_json(path)
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown or "prompt" not in fields:
            raise ValueError(f"{path}: unknown fields {unknown}" if unknown else f"{path} has no prompt")
        return cls(**{"bos": False, **fields})

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
        if self.catalogue_fingerprint and catalogue_fingerprint(items) != self.catalogue_fingerprint:
            raise ValueError(
                f"{folder} was made for another catalogue than the given data: "
                "use the data it was made with, or run recipes/init_model.py again"
            )


def semids_table(folder: str | Path) -> pa.Table:
    """The table of `semids.parquet`: item_id, semid, codes and the items' own columns."""
    return read_parquet(Path(folder) / SEMIDS)


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
    """What a folder holds beside the model: its index, its items, and its item tokenizer if that reads histories."""
    index = load_index(folder, config)
    reader = load_item_tokenizer(Path(folder) / ITEM_TOKENIZER) if index.contextual else None
    return index, semids_table(folder), reader
