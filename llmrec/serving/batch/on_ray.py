"""`RayActors`: the lists of `recommend_file` made on a Ray cluster, by actors with a model of their own.

The process that asks reads the parts and writes their files, so a run that goes on needs nothing else, and other nodes
need to see the model folder alone, under the same path. Checked with ray 2.60.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.catalogue.filters import CatalogueFilter
from llmrec.models.folder import RecommenderConfig, load_index, semids_table
from llmrec.serving.batch.parts import Job, Part, PartMaker, load


@dataclass
class RayActors:
    """Takes the place of a recommender in `recommend_file`, on the cluster that `ray.init` or `RAY_ADDRESS` names.

    Example:
        >>> recommend_file(RayActors("out/industrial/model", actors=8), "users.parquet", "lists.parquet", k=10)

    Args:
        model: a model folder; raises `ValueError` for another one.
        backend, engine: see `llmrec.serving.batch.parts.load`.
        actors: how many, each with a model of its own; the cluster must have room for all.
        gpus_per_actor: what Ray gives to each; 0 on CPUs.
    """

    model: str | Path
    backend: str = "vllm"
    engine: dict = field(default_factory=dict)
    actors: int = 1
    gpus_per_actor: float = 1

    def __post_init__(self):
        self.index = load_index(self.model, RecommenderConfig.load(self.model))
        self.filter = CatalogueFilter(semids_table(self.model))

    def make(self, job: Job, parts: Iterable[Part]) -> Iterator[Part]:
        """Parts with their lists, in any order; each actor has one at a time.

        Raises:
            ray.exceptions.RayTaskError: what failed in an actor.
        """
        import ray
        from ray.util import ActorPool

        # what an actor was at when it was lost is done again
        actor = ray.remote(num_gpus=self.gpus_per_actor, max_restarts=-1, max_task_retries=-1)(_Actor)
        source = str(Path(self.model).resolve()), self.backend, self.engine
        pool = ActorPool([actor.remote(job, *source) for _ in range(self.actors)])
        for part in parts:
            if not pool.has_free():
                yield pool.get_next_unordered()
            pool.submit(lambda free, part: free.make.remote(part), part)
        while pool.has_next():
            yield pool.get_next_unordered()


class _Actor(PartMaker):
    def __init__(self, job: Job, model: str, backend: str, engine: dict):
        super().__init__(load(model, backend, **engine), job)
