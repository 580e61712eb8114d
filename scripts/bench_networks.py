"""Training speed of the networks that rank: our step against a plain PyTorch step on the same batches and model.

    python scripts/bench_networks.py [--json FILE] [--steps 40] [--repeats 3] [--items 12000]

The plain step computes every layer at every place, takes `F.cross_entropy` of the logits of all its targets, and drops
by `nn.Dropout`. Rows are random, as long as those of Amazon Beauty; shapes and rates are those of
recipes/configs/benchmarks/beauty. The figures are medians of ratios of CPU seconds, both in turn in one process.
Without dropout losses and gradients agree.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from llmrec.data.known import known_items
from llmrec.features.attention import Dropout
from llmrec.features.network_training import adamw
from llmrec.features.next_item import next_item_batches, next_item_loss, next_item_windows
from llmrec.features.sasrec_network import SASRecConfig, SASRecModel
from llmrec.files import write_json
from llmrec.recommenders.networks.bsarec import BSARecConfig, BSARecModel
from llmrec.recommenders.networks.hstu import HSTUConfig, HSTUModel

NETWORKS = {
    "sasrec": (SASRecModel, SASRecConfig),
    "bsarec": (BSARecModel, BSARecConfig),
    "hstu": (HSTUModel, HSTUConfig),
}


def rows(items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items, their times and the offsets of sequences of 2 to 200 items, 7 on average; popular items come often."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(2 + rng.geometric(0.2, 20_000) - 1, 200))])
    values = (items * rng.random(offsets[-1]) ** 3).astype(np.int32)
    return values, np.sort(rng.integers(0, 10**8, offsets[-1])), offsets


def plain(model, batch: tuple[np.ndarray, ...]) -> torch.Tensor:
    ids, labels, lengths, known = map(torch.from_numpy, batch)
    kept = labels >= 0
    return F.cross_entropy(model.head(model(ids, lengths, known)[kept]), labels[kept])


def with_plain_dropout(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.rate))
    return model


def seconds(loss: Callable, model, optimizer, batches: list) -> float:
    began = time.process_time()
    for batch in batches:
        value = loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        value.item()
    return time.process_time() - began


def difference(ours: Callable, model, batch) -> float:
    """The greatest relative difference of the loss and of gradients, without dropout."""
    results = []
    for loss in (ours, plain):
        one = copy.deepcopy(model).eval()
        value = loss(one, batch)
        value.backward()
        results.append([value.detach(), *(weights.grad for weights in one.parameters())])
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results) if b.abs().max() > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures there")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--items", type=int, default=12_000)
    arguments = parser.parse_args()
    values, times, offsets = rows(arguments.items)
    figures = {}
    print(f"{arguments.items:,} items, {torch.get_num_threads()} threads, {arguments.steps} steps")
    for name, (network, config_class) in NETWORKS.items():
        with open(f"recipes/configs/benchmarks/beauty/{name}.yaml", encoding="utf-8") as file:
            config = config_class(**yaml.safe_load(file)["settings"])
        windows = next_item_windows(offsets, np.ones(len(offsets) - 1, int), config.max_length, config.rows)
        drawn = next_item_batches(
            values, known_items(offsets, times), windows, config.batch_size, np.random.default_rng(0)
        )
        batches, last = list(islice(drawn, arguments.steps)), config.rows == "prefix"
        torch.manual_seed(0)
        model, ratios = network(arguments.items, config), []

        def ours(model, batch, last=last):
            return next_item_loss(model, batch, last)[0]

        for repeat in range(arguments.repeats):
            taken = []
            for loss in (ours, plain):
                one = copy.deepcopy(model).train()
                one = with_plain_dropout(one) if loss is plain else one
                taken.append(seconds(loss, one, adamw(config)(one), batches))
            ratios.append(taken[1] / taken[0])
            steps = [f"{one / len(batches) * 1000:.1f} ms" for one in taken]
            print(f"{name}, run {repeat}: a step takes {steps[0]}, plain {steps[1]}, ratio {ratios[-1]:.2f}")
        figures[f"network_training_speedup/{name}"] = statistics.median(ratios)
        figures[f"network_training_difference/{name}"] = difference(ours, model, batches[0])
        print(f"{name}: loss and gradients differ by {figures[f'network_training_difference/{name}']:.1e} at most")
    if arguments.json:
        write_json(arguments.json, {"figures": figures})


if __name__ == "__main__":
    main()
