"""The report's plots, as PNG bytes."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmrec.evaluation.evaluate import EvaluationResult

_CLASS_COLOURS = {"head": "#274c77", "mid": "#6096ba", "tail": "#a3cef1", "cold": "#e8998d"}


def metric_curves(results: list[EvaluationResult], metric: str = "recall") -> bytes:
    """`metric`@k over k, one line per recommender, bars = 95 % intervals."""
    axes = _axes(4)
    for number, result in enumerate(results):
        ks = [int(key.split("@")[1]) for key in result.metrics if key.startswith(f"{metric}@")]
        means = [result.metrics[f"{metric}@{k}"] for k in ks]
        # A small shift keeps the bars of different recommenders apart.
        places = [k * 1.02 ** (number - len(results) / 2) for k in ks]
        axes.errorbar(places, means, _errors(means, [result.ci.get(f"{metric}@{k}") for k in ks]), marker="o", ms=4,
                      capsize=2, label=result.name)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set(xlabel="k", ylabel=f"{metric}@k, item level", ylim=(0, None))
    return _png(axes)


def slice_bars(results: list[EvaluationResult], family: str, metric: str = "recall@10") -> bytes:
    """`metric` by slice of one family (`target popularity`, `history length`, `target in history`)."""
    slices = [one for one in results[0].slices if one["slice"].startswith(f"{family} / ")]
    axes = _axes(4)
    width = 0.8 / len(results)
    for number, result in enumerate(results):
        by_name = {one["slice"]: one for one in result.slices}
        # Shuffled histories make other slices: a bar is drawn where the slice exists.
        drawn = [place for place, one in enumerate(slices) if one["slice"] in by_name]
        chosen = [by_name[slices[place]["slice"]] for place in drawn]
        means = [one[metric] for one in chosen]
        places = [place + (number - (len(results) - 1) / 2) * width for place in drawn]
        axes.bar(places, means, width, yerr=_errors(means, [one["ci"].get(metric) for one in chosen]), capsize=2,
                 label=result.name)  # fmt: skip
    labels = [f"{one['slice'].split(' / ')[1].replace(' (', chr(10) + '(')}\n{one['rows']} rows" for one in slices]
    axes.set_xticks(range(len(slices)), labels, fontsize=8)
    axes.set(xlabel=family, ylabel=f"{metric}, item level")
    return _png(axes)


def exposure_bars(results: list[EvaluationResult]) -> bytes:
    """Which popularity classes get the places 1 to 10, beside the targets and the catalogue."""
    bars = [(result.name, result.exposure["recommended"]) for result in results]
    bars += [("targets", results[0].exposure["targets"]), ("catalogue", results[0].exposure["catalogue"])]
    axes = _axes(0.5 * len(bars) + 1.2)
    left = [0.0] * len(bars)
    for name, colour in _CLASS_COLOURS.items():
        shares = [share[name] for _, share in bars]
        axes.barh(range(len(bars)), shares, left=left, color=colour, label=name)
        left = [start + share for start, share in zip(left, shares)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set(xlabel="share of the first 10 places", xlim=(0, 1))
    return _png(axes, ncols=4, loc="outside upper left")


def _errors(means: list[float], intervals: list[list[float] | None]) -> list[list[float]] | None:
    if any(interval is None for interval in intervals):
        return None
    return [
        [max(0.0, mean - low) for mean, (low, _) in zip(means, intervals)],
        [max(0.0, high - mean) for mean, (_, high) in zip(means, intervals)],
    ]


def _axes(height: float) -> Axes:
    return Figure(figsize=(8, height), layout="constrained").add_subplot()


def _png(axes: Axes, loc: str = "outside right upper", ncols: int = 1) -> bytes:
    """The legend stands beside what is drawn, never on it."""
    axes.figure.legend(frameon=False, loc=loc, ncols=ncols)
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
