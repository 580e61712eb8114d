"""The loop that trains small networks by a validation ndcg@10: SASRec and its peers, and dense heads.

It keeps the best weights by validation ndcg@10, stops early, writes a learning curve, and a checkpoint after every
epoch, from which a run that was killed goes on as if it had not been.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from tqdm import tqdm

from llmrec.arguments import at_least
from llmrec.arrays import blocks, check_loss
from llmrec.data import PreparedData, excludes_seen, ids_to_rows, lists_to_rows
from llmrec.files import load_state, part_of, read_json, save_state, write_json

logger = logging.getLogger(__name__)
CHECKPOINT, CURVE = "checkpoint", "curve.json"  # in the folder of a run


@dataclass(frozen=True)
class LoopConfig:
    """What `train_network` and those who prepare it read."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Constant."})
    weight_decay: float = field(default=0.0, metadata={"help": "On all parameters."})
    batch_size: int = field(default=256, metadata={"help": "Training sequences (or prefixes of them) per step."})
    max_epochs: int = field(default=200, metadata={"help": "Early stopping usually ends training before."})
    patience: int = field(default=6, metadata={"help": "Epochs without a better validation ndcg@10."})
    seed: int = field(default=0, metadata={"help": "Of weights, dropout, the order of batches and all that is drawn."})
    validation_rows: int | None = field(default=None, metadata={"help": "Validate on so many random rows, not all."})

    def __post_init__(self):
        at_least(self, batch_size=1, max_epochs=1, patience=1, learning_rate=0.0, weight_decay=0.0, validation_rows=1)


@dataclass(frozen=True)
class NetworkConfig(LoopConfig):
    """What the training of every network that ranks the catalogue has."""

    exclude_seen: str = field(
        default="auto",
        metadata={"help": "Validate without items of the history: auto (docs/evaluation.md), true, false."},
    )


def check_rate(config, *names: str) -> None:
    """Raises `ValueError` for a field that is no share below 1, as dropout is."""
    at_least(config, **dict.fromkeys(names, 0.0))
    for name in names:
        if getattr(config, name) >= 1:
            raise ValueError(f"{name}: {getattr(config, name)} leaves nothing: it should be below 1")


def adamw(config: LoopConfig, betas: tuple[float, float] = (0.9, 0.98)) -> Callable[[nn.Module], torch.optim.AdamW]:
    """Of a network, its AdamW at the config's rates."""
    rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": betas}
    return lambda model: torch.optim.AdamW(model.parameters(), **rates, fused=True)


def validation_rows(data: PreparedData, config, name: str) -> pa.Table:
    """`data.valid` or, of a config with `validation_rows` and `seed`, a random sample of it in its order; `ValueError`
    where there is no row."""
    rows, most = data.valid, config.validation_rows
    if not rows.num_rows:
        raise ValueError(f"valid.parquet has no row: {name} is chosen by validation rows")
    if most is not None and most < rows.num_rows:
        rows = rows.take(np.sort(np.random.default_rng(config.seed).choice(rows.num_rows, most, replace=False)))
    return rows


def ndcg_gains(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float [b]: the ndcg@10 of targets (int64 [b]) by the scores of all items (float [b, items]); ties stand in the
    items' order, and what scores -inf is not found."""
    target = targets.to(scores.device)[:, None]
    wanted = scores.gather(1, target)
    rank = (scores > wanted).sum(1)
    found = ((rank < 10) & wanted[:, 0].isfinite()).nonzero()[:, 0]
    before = torch.arange(scores.shape[1], device=scores.device) < target[found]
    rank = rank[found] + ((scores[found] == wanted[found]) & before).sum(1)
    gains = torch.zeros(len(scores), device=scores.device)
    return gains.index_put((found,), torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0.0)).cpu()


class Validation(NamedTuple):
    """Rows to stop by: histories (`values`, `offsets` as of `lists_to_rows`), targets int32 [n], whether items of the
    history are left out, and what else is known of the items of histories (`llmrec.data.known`), beside `values`."""

    values: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray
    excluded: bool
    known: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        data: PreparedData,
        config: NetworkConfig,
        name: str,
        known_of: Callable[[pa.Table], np.ndarray] | None = None,
    ) -> Self:
        """The `validation_rows`, and what is known of the histories of these rows."""
        rows = validation_rows(data, config, name)
        lengths = pc.list_value_length(rows["history"]).to_numpy()
        rows = rows.take(np.argsort(lengths, kind="stable"))  # alike in a batch, so there is little padding
        histories = lists_to_rows(rows["history"], data.items["item_id"])
        targets = ids_to_rows(rows["target"], data.items["item_id"])
        beside = None if known_of is None else known_of(rows)
        return cls(*histories, targets, excludes_seen(config.exclude_seen, data), beside)

    @torch.no_grad()
    def ndcg(self, score: Callable[..., torch.Tensor]) -> float:
        """Mean `ndcg_gains` of the targets in the whole catalogue, or in it without the history. `score` gives float
        [b, items] after histories (int32 [n], int64 [b + 1], and what is known beside)."""
        gains = []
        for batch in blocks(len(self.targets), 128):
            bounds = self.offsets[batch.start : batch.stop + 1]
            seen = self.values[bounds[0] : bounds[-1]]
            beside = () if self.known is None else (self.known[bounds[0] : bounds[-1]],)
            scores = score(seen, bounds - bounds[0], *beside)
            if self.excluded:
                row = np.repeat(np.arange(len(scores)), np.diff(bounds))
                scores[torch.from_numpy(row), torch.from_numpy(seen.astype(np.int64))] = -torch.inf
            gains.append(ndcg_gains(scores, torch.from_numpy(self.targets[batch].astype(np.int64))))
        return torch.cat(gains).mean().item()


def train_network(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[np.random.Generator], Iterator],
    loss: Callable,
    validate: Callable[[], float],
    config: LoopConfig,
    name: str,
    folder: str | Path | None = None,
) -> list[dict]:
    """Trains until validation stops it, and leaves the network with its best weights.

    Args:
        batches: gives the batches of one epoch, drawn with the generator.
        loss: of one batch: the mean loss, and of how many targets (`int`).
        validate: ndcg@10, or what else is to be as great as possible; the model is in evaluation mode.
        folder: of a run: gets the curve and, after every epoch, a checkpoint; goes on from one that lies there.

    Returns:
        The learning curve, one dict an epoch: epoch, step (updates so far), seconds, loss, ndcg@10.

    Raises:
        FloatingPointError: the loss of a step is NaN or inf.
    """
    generator, curve, best = np.random.default_rng(config.seed), [], {}
    if folder and (Path(folder) / CHECKPOINT).exists():
        curve, best = _resume(Path(folder), model, optimizer, generator)
    best_epoch = max(curve, key=lambda one: one["ndcg@10"], default={"epoch": 0})["epoch"]
    epochs = range(len(curve) + 1, config.max_epochs + 1)
    progress = tqdm(epochs, desc=name, unit="epoch", initial=len(curve), total=config.max_epochs)
    for epoch in progress:
        if curve and curve[-1]["epoch"] - best_epoch >= config.patience:
            break
        began, total, count, updates = time.perf_counter(), 0.0, 0, 0
        model.train()
        steps = {"total": curve[-1]["step"] // len(curve) if curve else None, "unit": "step", "leave": False}
        for batch in tqdm(batches(generator), desc=f"{name}, epoch {epoch}", delay=2, **steps):
            mean, targets = loss(batch)
            check_loss(value := mean.item(), name)
            optimizer.zero_grad(set_to_none=True)
            mean.backward()
            optimizer.step()
            total, count, updates = total + value * targets, count + targets, updates + 1
        trained = time.perf_counter() - began
        model.eval()
        before = curve[-1] if curve else {"step": 0, "seconds": 0.0}
        one = {"epoch": epoch, "step": before["step"] + updates, "loss": total / count, "ndcg@10": validate()}
        curve.append(one | {"seconds": round(before["seconds"] + time.perf_counter() - began, 2)})
        if not best or one["ndcg@10"] > curve[best_epoch - 1]["ndcg@10"]:
            best_epoch, best = epoch, {key: value.clone() for key, value in model.state_dict().items()}
        if folder:
            _keep(Path(folder), model, optimizer, generator, curve, best)
        shown = {"loss": f"{one['loss']:.3f}", "valid_ndcg10": f"{one['ndcg@10']:.4f}", "step": one["step"]}
        progress.set_postfix(shown | {"best": best_epoch, "updates/s": f"{updates / trained:.1f}"})
    progress.close()
    model.load_state_dict(best)
    model.eval()
    logger.info("%s: best validation ndcg@10 %.4f at epoch %d", name, curve[best_epoch - 1]["ndcg@10"], best_epoch)
    return curve


def _keep(folder: Path, model, optimizer, generator, curve: list[dict], best: dict) -> None:
    device = next(model.parameters()).device
    arrays = {f"model.{key}": value for key, value in model.state_dict().items()}
    arrays |= {f"best.{key}": value for key, value in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        arrays |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    arrays["torch"] = torch.get_rng_state()
    if device.type == "cuda":
        arrays["cuda"] = torch.cuda.get_rng_state(device)
    write_json(folder / CURVE, {"epochs": curve})
    drawn = generator.bit_generator.state
    save_state(
        folder / CHECKPOINT,
        {"curve": curve, "generator": drawn},
        {key: value.detach().cpu().numpy() for key, value in arrays.items()},
    )


def _resume(folder: Path, model, optimizer, generator) -> tuple[list[dict], dict]:
    config, arrays = load_state(folder / CHECKPOINT)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model.load_state_dict(part_of(tensors, "model."))
    states: dict[int, dict] = {}
    for name, tensor in part_of(tensors, "optimizer.").items():
        number, key = name.split(".", 1)
        states.setdefault(int(number), {})[key] = tensor.squeeze() if key == "step" else tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    generator.bit_generator.state = config["generator"]
    torch.set_rng_state(tensors["torch"])
    device = next(model.parameters()).device
    if "cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)
    logger.info("goes on after epoch %d of %s", len(config["curve"]), folder)
    return config["curve"], {key: value.to(device) for key, value in part_of(tensors, "best.").items()}


def learning_curve(folder: str | Path) -> list[dict]:
    """What `train_network` wrote into a folder; nothing where no network was trained."""
    path = Path(folder) / CURVE
    return read_json(path)["epochs"] if path.exists() else []
