"""What a model was made of, stage by stage: `provenance.json` of every model folder, which the next stage continues.

It names no place on this machine, so it is shared with the model; the card is written from it.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

from llmrec.files import read_json, well_formed, write_json
from llmrec.hub import is_hub_name, without_paths, without_revision
from llmrec.stages import RECORD

FILE = "provenance.json"


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from.

    Attributes:
        base_model: the pretrained model on the Hub, `owner/name`; empty where it is none of the Hub.
        license: of the base: `license` and, where its card has them, `license_name` and `license_link`.
        datasets: on the Hub, that it was trained on.
        stages: what made it, oldest first: `{"stage": "init", ...}`, `{"stage": "sft", "tasks": [...], ...}`.
    """

    base_model: str = ""
    license: dict = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    stages: list[dict] = field(default_factory=list)

    @property
    def from_scratch(self) -> bool:
        """Whether recipes/init_model.py made the model of a config."""
        return any(stage.get("from_scratch") for stage in self.stages)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Of a folder; one of an older version has it in what its stages recorded. Raises `ValueError` naming a file
        that is damaged."""
        if not (path := Path(folder) / FILE).is_file():
            return cls._of_stages(str(folder))
        with well_formed(path):
            return cls(**read_json(path))

    @classmethod
    def _of_stages(cls, base: str) -> Self:
        seen = set()  # a run may have replaced its own base
        while base not in seen and (record := Path(base) / RECORD).is_file():
            seen.add(base)
            settings = read_json(record).get("settings", {})
            if settings.get("model_config"):
                return cls(stages=[{"stage": "init", "from_scratch": True}])
            base = settings.get("model_name_or_path") or ""
        return cls(base_model=without_revision(base) if is_hub_name(base) else "")

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / FILE, asdict(self))

    def then(self, stage: str, datasets: list[str] = (), **facts) -> Self:
        """With one stage more. Places on this machine become names, and facts that are empty are left out."""
        facts = {name: value for name, value in without_paths(facts).items() if value not in (None, "", [], {}, False)}
        together = [*dict.fromkeys([*self.datasets, *datasets])]
        return replace(self, datasets=together, stages=[*self.stages, {"stage": stage, **facts}])


def of_pretrained(name: str | None, base_model: str | None = None, license: str | None = None) -> Provenance:
    """Of a pretrained model, before any stage of ours; of one from scratch without a `name`.

    Args:
        base_model: what it is called on the Hub, where `name` is a folder and does not say it.
        license: where neither the folder's card nor that on the Hub says it, or can be reached.
    """
    known = Provenance.load(name) if name else Provenance()
    called = base_model or known.base_model
    found = {"license": license} if license else known.license or _license(name or "") or _license(called)
    return replace(known, base_model=called, license=found)


def _license(name: str) -> dict:
    """What a model's card says of its license: of a folder, or of a name on the Hub; nothing where it says nothing."""
    card = Path(name) / "README.md"
    if not card.is_file() and not is_hub_name(name):
        return {}
    try:
        data = ModelCard.load(card if card.is_file() else without_revision(name), ignore_metadata_errors=True).data
    except (OSError, ValueError, HfHubHTTPError):
        return {}
    found = {key: data.get(key) for key in ("license", "license_name", "license_link")}
    return {key: value for key, value in found.items() if isinstance(value, str)}
