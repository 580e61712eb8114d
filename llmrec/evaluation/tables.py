"""Figures as text, and tables for Markdown and for a terminal."""

from collections.abc import Collection, Mapping, Sequence


def with_interval(mean: float, interval: Sequence[float] | None = None) -> str:
    """`0.1680 [0.1533, 0.1822]`."""
    return f"{mean:.4f}" if interval is None else "{:.4f} [{:.4f}, {:.4f}]".format(mean, *interval)


def cell(figures: Mapping[str, float], intervals: Mapping[str, Sequence[float]], name: str) -> str:
    """A figure with its interval if there is one; a dash where there is no such figure."""
    if name not in figures:
        return "–"
    if name.endswith("_per_second"):
        return f"{figures[name]:,.0f}"
    return with_interval(figures[name], intervals.get(name))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """The lines of a table; columns but those of `left` are flush right."""
    rule = "".join("---|" if place in left else "---:|" for place in range(len(header)))
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [lines[0], f"|{rule}", *lines[1:]]


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)
