"""`ray_recommend_file`: `recommend_file` with the parts made by actors of a Ray cluster, each with its own engine.

What travels through Ray Data is the list of parts, not the rows: an actor reads a part of the input and writes its
file, as one process does, so the order of rows and a run that goes on need nothing else. All nodes see the input, the
output's folder and the model folder under the same paths.

Checked with ray 2.60.
"""

from pathlib import Path

from llmrec.catalogue.filters import CatalogueFilter, Filter
from llmrec.models.folder import RecommenderConfig, load_index, semids_table
from llmrec.serving.batch.parts import Job, Known, Part, PartWorker
from llmrec.serving.batch.recommend_file import complete, load, settings_of


class PartActor:
    """A `PartWorker` of Ray Data, with a recommender that it loads."""

    def __init__(self, model: str, backend: str, engine: dict, job: Job):
        self.worker = PartWorker(load(model, backend, **engine), job)

    def __call__(self, batch: dict) -> dict:
        """Columns of `Part` (int64 [n] each) → `rows` (int64 [n])."""
        parts = [Part(*map(int, values)) for values in zip(*(batch[name] for name in Part._fields))]
        return {"rows": [self.worker(part) for part in parts]}


def ray_recommend_file(
    model: str | Path,
    input: str | Path,
    output: str | Path,
    backend: str = "vllm",
    engine: dict | None = None,
    actors: int = 1,
    gpus_per_actor: float = 1,
    k: int = 10,
    filters: Filter | None = None,
    batch_size: int = 512,
    part_rows: int = 8192,
    on_unknown: str = "error",
    titles: bool = False,
    **options,
) -> Path:
    """Recommends for every row of a parquet file, on the cluster that `ray.init` or `RAY_ADDRESS` names, or here.

    Args:
        model: a model folder.
        backend, engine: see `llmrec.serving.batch.recommend_file.load`.
        actors: how many, each with a model of its own.
        gpus_per_actor: what Ray gives to each; 0 on CPUs.
        rest: see `llmrec.serving.batch.recommend_file.recommend_file`.

    Raises:
        ValueError: see `recommend_file`; a folder that is no model folder.
        ray.exceptions.RayTaskError: what failed in an actor; the parts that are done stay.
    """
    import ray

    model, engine = str(Path(model).resolve()), engine or {}
    files = (str(Path(path).resolve()) for path in (input, output))
    job = Job(*files, k, filters, batch_size, part_rows, on_unknown, titles, options)

    def run(parts: list[Part]):
        # a block for each part, so that a part is what an actor gets, and what is done again when an actor is lost
        rows = ray.data.from_items([part._asdict() for part in parts], override_num_blocks=len(parts))
        made = rows.map_batches(
            PartActor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=gpus_per_actor,
            fn_constructor_args=(model, backend, engine, job),
        )
        for row in made.iter_rows():
            yield row["rows"]

    known = Known.of(load_index(model, RecommenderConfig.load(model)))
    allowed = CatalogueFilter(semids_table(model))  # what does not fit is refused before actors start
    allowed(filters)
    allowed.limits(filters)
    return complete(job, known, settings_of(model, backend, engine), run)
