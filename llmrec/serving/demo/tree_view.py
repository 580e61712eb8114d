"""The tree of the recommended Semantic IDs: probability mass by prefix, drawn level by level."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmrec.serving.demo.views import bare, escape, percent, shares, tokens_of

SHOWN = 12  # best items that get a line of their own; the others are folded into their branches
ROW, TOP, LEFT = 34, 34, 24  # pixels: height of a line, room above the first, room left of the root
WIDTH, HEIGHT, GAP, TITLE = 104, 26, 48, 400  # a node's box, the room for links behind it, and for a title
STEP = WIDTH + GAP
DELAY = 0.45  # seconds from level to level


@dataclass
class Node:
    """A prefix of Semantic IDs.

    Args:
        token: the last token of the prefix, empty at the root.
        mass: the share of all items below it, in [0, 1].
        children: by next token, heaviest first.
        items: those that end here: `item_id`, `title`, `mass`.
        folded, folded_mass: items below it, and below no child, that have no line of their own.
    """

    token: str = ""
    mass: float = 0.0
    children: dict[str, "Node"] = field(default_factory=dict)
    items: list[dict] = field(default_factory=list)
    folded: int = 0
    folded_mass: float = 0.0

    @property
    def depth(self) -> int:
        return max((1 + child.depth for child in self.children.values()), default=0)

    def sort(self) -> None:
        """Heaviest branches first, at every level."""
        self.children = dict(sorted(self.children.items(), key=lambda pair: -pair[1].mass))
        for child in self.children.values():
            child.sort()


def grow(items: Sequence[dict], shown: int = SHOWN, target: str | None = None) -> Node:
    """The tree of recommended items, best first, with `semid`, `score`, `item_id`, `title`.

    The mass of a prefix is the sum of the shares of the items below it (with log-probabilities as scores: the
    log-sum-exp over them, relative to the whole list). Items after the first `shown` (but for the `target`) are folded
    into the deepest prefix that they have in common with one of these.
    """
    root = Node()
    masses = shares([item["score"] for item in items])
    kept = [place < shown or item["item_id"] == target for place, item in enumerate(items)]
    for item, mass, keep in zip(items, masses, kept):
        if keep:
            node = root
            for token in tokens_of(item["semid"]):
                node = node.children.setdefault(token, Node(token))
            node.items.append({"item_id": item["item_id"], "title": item["title"], "mass": mass})
    for item, mass, keep in zip(items, masses, kept):
        node = root
        node.mass += mass
        for token in tokens_of(item["semid"]):
            if token not in node.children:
                break
            node = node.children[token]
            node.mass += mass
        if not keep:
            node.folded += 1
            node.folded_mass += mass
    root.sort()
    return root


def draw(items: Sequence[dict], target: str | None = None, shown: int = SHOWN) -> str:
    """The tree as SVG (see `grow`); every level appears after the one before it. `target`, an item id, is marked."""
    return _Drawing(grow(items, shown, target), target).svg(len(items)) if items else ""


class _Drawing:
    """Lays a tree out from left to right, one line per item, and collects what each level shows."""

    def __init__(self, root: Node, target: str | None):
        self.target, self.depth = target, root.depth
        self.end = LEFT + (self.depth + 1) * STEP - WIDTH // 2  # where the last column begins
        self.lines = 0
        self.links: list[list[str]] = [[] for _ in range(self.depth + 2)]
        self.marks: list[list[str]] = [[] for _ in range(self.depth + 2)]
        self._place(root, 0)

    def svg(self, number: int) -> str:
        width, height = self.end + TITLE, TOP + self.lines * ROW + 6
        heads = [("prompt", LEFT - 14, "start")]
        heads += [(f"level {level}", LEFT + level * STEP, "middle") for level in range(1, self.depth + 1)]
        heads += [("share of the list", self.end + 8, "start")]
        levels = "".join(
            f'<g class="level" style="--level:{level}"><text class="head" x="{x}" y="16" text-anchor="{anchor}">{text}'
            f"</text>{''.join(links)}{''.join(marks)}</g>"
            for level, ((text, x, anchor), links, marks) in enumerate(zip(heads, self.links, self.marks))
        )
        return (
            f'<div class="scroll"><svg class="tree" role="img" aria-label="Semantic IDs of {number} items as a tree" '
            f'viewBox="0 0 {width} {height}" style="min-width:{0.78 * width:.0f}px;max-width:{1.3 * width:.0f}px;'
            f'--delay:{DELAY}s">{levels}</svg></div>'
        )

    def _place(self, node: Node, level: int) -> float:
        """Draws what lies below a node, then the node; returns its height on the page."""
        below = [(self._place(child, level + 1), child.mass, level + 1) for child in node.children.values()]
        last = self.depth + 1
        below += [(self._line(item["mass"], *self._title(item)), item["mass"], last) for item in node.items]
        if node.folded:
            text = f"{'+ ' if below else ''}{node.folded} more"
            below.append((self._line(node.folded_mass, text, "folded"), node.folded_mass, last))
        x, y = LEFT + level * STEP, (below[0][0] + below[-1][0]) / 2
        start, bend = x + (WIDTH // 2 if level else 9), x + STEP - WIDTH // 2
        middle = (start + bend) / 2
        for to, mass, at in below:  # a curve, and for lines a straight rest up to the last column
            self.links[at].append(
                f'<path class="link c{at if at < last else 0}" pathLength="1" stroke-width="{1.2 + 13 * mass:.1f}" '
                f'stroke-opacity="{0.4 + 0.4 * mass:.2f}" d="M{start} {y:.1f}C{middle} {y:.1f} {middle} {to:.1f} '
                f'{bend} {to:.1f}H{self.end if at == last else bend}"/>'
            )
        self.marks[level].append(self._box(node, level, x, y) if level else f'<circle cx="{x}" cy="{y:.1f}" r="9"/>')
        return y

    def _box(self, node: Node, level: int, x: float, y: float) -> str:
        box = f'x="{x - WIDTH // 2}" y="{y - HEIGHT / 2:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="8"'
        left, right, share = x - WIDTH // 2 + 9, x + WIDTH // 2 - 9, percent(node.mass)
        return (
            f'<g class="c{level}"><title>{escape(node.token)}: {share} of the list</title>'
            f'<rect class="box" {box}/><rect class="fill" {box} fill-opacity="{0.08 + 0.7 * node.mass:.2f}"/>'
            f'<text class="code" x="{left}" y="{y + 4:.1f}">{escape(bare(node.token, 8))}</text>'
            f'<text class="mass" x="{right}" y="{y + 4:.1f}" text-anchor="end">{share}</text></g>'
        )

    def _title(self, item: dict) -> tuple[str, str]:
        hit = item["item_id"] == self.target
        return ("★ " if hit else "") + (item["title"] or item["item_id"]), "hit" if hit else ""

    def _line(self, mass: float, text: str, kind: str) -> float:
        """One line of the last column; returns its height on the page."""
        y = TOP + (self.lines + 0.5) * ROW
        self.lines += 1
        self.marks[self.depth + 1].append(
            f'<text class="mass" x="{self.end + 52}" y="{y + 4:.1f}" text-anchor="end">{percent(mass)}</text>'
            f'<foreignObject x="{self.end + 62}" y="{y - 10:.1f}" width="{TITLE - 66}" height="20">'
            f'<div class="title {kind}" title="{escape(text)}">{escape(text)}</div></foreignObject>'
        )
        return y
