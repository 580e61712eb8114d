"""`recommend_file`: recommendations for the rows of a parquet file, millions of them.

    python -m llmrec.serving.batch.recommend_file --model out/industrial/model --backend vllm --k 10 \
        --input users.parquet --output lists.parquet --filters '{"exclude_seen": true}'

Rows are recommended part by part into the folder `<output>.parts`; each file in it is whole or not there, and `output`
appears by a rename when all are there. One process writes an output at a time. A run that was killed goes on where it
stopped when it is started again, and gives the file of one that was not. With `--actors 4 --gpus_per_actor 1` Ray
makes the parts (`RayActors`).
"""

import hashlib
import inspect
import json
import logging
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from llmrec.arguments import at_least, construct, did_you_mean
from llmrec.catalogue.filters import Filter
from llmrec.commands import run_script
from llmrec.files import Lock, atomic_path, check_folder, fingerprint, read_parquet, write_json
from llmrec.recommenders import LLMRecommender, files_of
from llmrec.recommenders.protocol import Recommender
from llmrec.serving.batch.parts import Job, PartMaker, RayActors, load

logger = logging.getLogger("llmrec.serving.batch.recommend_file")  # also where this is __main__
METADATA = b"llmrec.recommend_file"  # of the output's schema: the settings that made it, as JSON
CONTENT = b"llmrec.content"  # in the footer: the bytes before it, how many and their fingerprint; goes when rewritten


def recommend_file(
    recommender: Recommender | RayActors,
    input: str | Path,
    output: str | Path,
    k: int = 10,
    filters: Filter | None = None,
    batch_size: int = 512,
    part_rows: int = 8192,
    on_unknown: str = "error",
    titles: bool = False,
    settings: dict | None = None,
    **options,
) -> Path:
    """Recommends for every row of a parquet file.

    Example:
        >>> recommender = VLLMRecommender.from_pretrained("out/industrial/model")
        >>> recommend_file(recommender, "users.parquet", "lists.parquet", k=10, filters=Filter(exclude_seen=True))

    Args:
        input: parquet with a column `history` (list<string>: item ids, oldest first; may be empty), and `behaviours`
            (list<string>, parallel to it) where the model has them. All columns are carried over.
        output: parquet with the same rows in the same order, and for each `items` (list<string>, best first, at most
            k) and `scores` (list<float>).
        part_rows: rows in a part: those held in memory, and those that a killed run has to do again.
        on_unknown: `"error"`, or `"drop"` to leave items that are not in the catalogue out of histories.
        titles: also write `titles` (list<string>).
        settings (*optional*): what else decides the result, such as which weights; parts of others are refused.
        options: of `recommender.recommend`, such as `num_beams` or `behaviour`.

    Returns:
        `output`. Where it is there already, made with these settings, nothing is done.

    Raises:
        ValueError: an input that cannot be read, a row that cannot be recommended for (all are looked at before the
            work begins), a result of other settings in the way, or a result or part that is damaged.
    """
    output = Path(output).resolve()  # where it is a link, what it points to is written
    job = Job(str(input), k, filters, batch_size, part_rows, on_unknown, titles, options)
    maker, on_ray, settings = PartMaker(recommender, job), isinstance(recommender, RayActors), settings or {}
    if on_ray:
        recommender.filter.check(filters)  # what does not fit is refused before actors start
        settings = model_settings(recommender.model, recommender.backend, recommender.engine) | settings
    schema = maker.open().schema_arrow
    with open(input, "rb") as opened:
        content = fingerprint(hashlib.file_digest(opened, "sha256").digest())
    asked = {name: value for name, value in asdict(job).items() if name != "batch_size"}
    settings = asked | {"input": content, "semids": maker.semids} | settings
    settings = json.loads(json.dumps(settings, default=str))
    if not _is_there(output, settings):
        with Lock(output):
            if not _is_there(output, settings):  # now that no other process can be at it
                _write(output, settings, schema, maker, recommender if on_ray else None)
    return output


def _write(output: Path, settings: dict, schema: pa.Schema, maker: PartMaker, actors: RayActors | None) -> None:
    job, folder = maker.job, Path(f"{output}.parts")
    record, made_by = folder / "settings.json", fingerprint(json.dumps(settings))
    if record.exists():
        _check_same(_settings_of(record), settings, folder)
    elif check_folder(folder).exists() and any(folder.glob("[!.]*")):
        raise ValueError(f"{folder} holds files of somebody else: move them, or choose another output")
    rows_of, dropped = {}, 0  # file of a part -> its rows
    for part in maker.read(whole=False):
        rows_of[folder / f"{part.number:06}.parquet"] = len(part.rows)
        dropped += maker.histories(part)[1]
    if dropped:
        logger.warning("%s: %s unknown items are left out of histories", job.input, f"{dropped:,}")
    write_json(record, settings)
    files, total = list(rows_of), sum(rows_of.values())
    there = [file for file in files if file.exists()]
    for number, file in enumerate(files):
        if file.exists():
            facts = _facts_of(file, "remove it, and it is made again")
            _check_same(facts, {"part": number, "of": made_by}, file)
    left = total - sum(rows_of[file] for file in there)
    logger.info("%s: %s of %s rows to do, in parts of %s", job.input, f"{left:,}", f"{total:,}", folder)
    began = time.perf_counter()
    missing = (part for part in maker.read() if not files[part.number].exists())
    made = actors.make(job, missing) if actors and left else map(maker.make, missing)
    with tqdm(total=total, initial=total - left, desc="recommend", unit="row", unit_scale=True) as progress:
        for part in made:
            _write_with_facts(files[part.number], [part.rows], part.rows.schema, {"part": part.number, "of": made_by})
            progress.update(len(part.rows))
    seconds = time.perf_counter() - began
    logger.info("%s rows in %.1f s: %.1f rows/s", f"{left:,}", seconds, left / seconds)
    schema = pa.schema([*schema, *job.new_columns()], schema.metadata)
    _write_with_facts(output, (read_parquet(file).cast(schema) for file in files), schema, settings)
    shutil.rmtree(folder)
    logger.info("Wrote %s", output)


def model_settings(model: str | Path, backend: str, engine: dict) -> dict:
    """What tells the scores of one model from those of another, for the settings of a run."""
    return {"model": fingerprint(files_of(Path(model).resolve()) or str(model)), "backend": backend, "engine": engine}


def _write_with_facts(file: Path, tables: Iterable[pa.Table], schema: pa.Schema, facts: dict) -> None:
    """Writes parquet whose schema holds `facts`, and its footer how many bytes of what fingerprint stand before it."""
    schema = schema.with_metadata({**(schema.metadata or {}), METADATA: json.dumps(facts)})
    with atomic_path(file) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table)
            content = _fingerprint(temporary, size := temporary.stat().st_size)
            writer.add_key_value_metadata({CONTENT: f"{size} {content}"})


def _fingerprint(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while size > 0 and (read := opened.read(min(size, 2**20))):
            digest.update(read)
            size -= len(read)
    return digest.hexdigest()


def _facts_of(file: Path, advice: str) -> dict:
    """What `_write_with_facts` wrote into a file; raises `ValueError` where it did not, or not all of it is there."""
    try:
        metadata = pq.read_metadata(file).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is damaged, or no parquet file ({error}): {advice}") from error
    if METADATA not in metadata:
        raise ValueError(f"{file} exists and recommend_file did not make it: move it, or choose another output")
    facts = _settings_of(file, metadata[METADATA])
    size, content = metadata.get(CONTENT, b"0 ").decode().split(" ")
    if content != _fingerprint(file, int(size)):
        raise ValueError(f"{file} is damaged, or changed since recommend_file wrote it: {advice}")
    return facts


def _is_there(output: Path, settings: dict) -> bool:
    if not output.exists():
        return False
    facts = _facts_of(output, "remove it, and the same command makes it again, or choose another output")
    _check_same(facts, settings, output)
    logger.info("%s is there already, made with these settings", output)
    return True


def _settings_of(file: Path, text: bytes | None = None) -> dict:
    """The settings that a file holds, or that stand in it."""
    try:
        settings = json.loads(file.read_bytes() if text is None else text)
        if isinstance(settings, dict):
            return settings
        error = "no JSON object"
    except ValueError as raised:
        error = raised
    raise ValueError(f"the settings in {file} are damaged ({error}): remove {file.parent if text is None else file}")


def _check_same(before: dict, settings: dict, where: Path) -> None:
    changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
    if changed:
        names = ", ".join(changed)
        raise ValueError(f"{where} was made with other settings ({names}): remove it, or choose another output")


@dataclass
class RecommendFileArguments:
    model: str = field(metadata={"help": "Model folder; with backend hf also a Hub model or a baseline's folder."})
    input: str = field(metadata={"help": "Parquet with a column history: lists of item ids, oldest first."})
    output: str = field(metadata={"help": "Parquet to write: the rows of the input, and items and scores."})
    k: int = field(default=10, metadata={"help": "How many items."})
    filters: str = field(
        default="{}",
        metadata={"help": 'Fields of a Filter as JSON: {"exclude_seen": true, "where": [["price", "<", 30]]}'},
    )
    options: str = field(
        default="{}", metadata={"help": 'More of recommend as JSON: {"num_beams": 20, "behaviour": "buy"}'}
    )
    titles: bool = field(default=False, metadata={"help": "Also write the titles of the items."})
    on_unknown: str = field(default="error", metadata={"help": "Unknown items in histories: error or drop."})
    backend: str = field(default="hf", metadata={"help": "hf or vllm."})
    engine: str = field(default="{}", metadata={"help": 'Arguments of the backend as JSON: {"dtype": "bfloat16"}'})
    batch_size: int = field(default=512, metadata={"help": "Rows per call of recommend."})
    part_rows: int = field(default=8192, metadata={"help": "Rows per part."})
    actors: int = field(default=0, metadata={"help": "Actors of Ray, each with a model of its own; 0: no Ray."})
    gpus_per_actor: float = field(default=0, metadata={"help": "GPUs that Ray gives to each actor."})


def main(args: RecommendFileArguments) -> None:
    at_least(args, k=1, batch_size=1, part_rows=1, actors=0, gpus_per_actor=0.0)
    filters, options, engine = (_fields(args, name) for name in ("filters", "options", "engine"))
    known = [*inspect.signature(LLMRecommender.recommend).parameters][4:]  # after histories, k and filters
    if unknown := [name for name in options if name not in known]:
        near = did_you_mean(unknown[0], known)
        raise ValueError(f"options: there is no {unknown[0]!r}; it takes {', '.join(known)}{near}")
    allowed = construct(Filter, filters, "filters") if filters else None
    on_ray = RayActors(args.model, args.backend, engine, args.actors, args.gpus_per_actor) if args.actors else None
    names = ("input", "output", "k", "batch_size", "part_rows", "on_unknown", "titles")
    recommend_file(
        on_ray or load(args.model, args.backend, **engine),
        filters=allowed,
        settings=model_settings(args.model, args.backend, engine),
        **{name: getattr(args, name) for name in names},
        **options,
    )


def _fields(args: RecommendFileArguments, name: str) -> dict:
    try:
        fields = json.loads(getattr(args, name))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name} is {fields!r}, it should be a JSON object")
    return fields


if __name__ == "__main__":
    run_script(main, RecommendFileArguments, level=logging.INFO)
