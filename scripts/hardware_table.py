"""Memory and time by model size and by scale, from public configurations of models; nothing is measured here.

    python scripts/hardware_table.py            # prints the tables
    python scripts/hardware_table.py --write    # and puts them into docs/hardware.md and docs/scale.md

The formulas stand below, one per line of the tables; the pages say what they leave out. Those of scale carry on from
figures that other scripts measured, which are named.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
LORA_RANK = 16
NEW_TOKENS = 3 * 256 + 32  # three codebooks of 256 and spare collision tokens
TRAIN_TOKENS = 8 * 1024  # of one micro-batch
PROMPTS, PROMPT_LENGTH, BEAMS, LEVELS = 32, 150, 50, 4
CHUNK = 2**24  # logits that llmrec.decoding holds at a time, in bf16, in fp32 and once more for the log-sum-exp
GPUS = {"RTX 4090": 165e12, "A100": 312e12, "H100": 989e12}  # dense bf16 FLOP/s by their data sheets
TRAIN_MFU, PREFILL_MFU = 0.35, 0.4  # assumed share of it that is reached
DOCS = Path(__file__).parents[1] / "docs"
MARKS = "<!-- computed by scripts/hardware_table.py -->", "<!-- end of computed -->"


@dataclass
class Model:
    """A decoder as in its `config.json`."""

    name: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    tied: bool
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 151_936

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of the projections of one layer: q, k, v, o, gate, up, down."""
        q, kv, h, f = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden, self.ffn
        return [(h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h)]

    @property
    def body(self) -> int:
        """Parameters without embedding and output head."""
        layer = sum(i * o for i, o in self.linear_shapes) + 2 * self.hidden + 2 * self.head_dim
        return self.layers * layer + self.hidden

    @property
    def parameters(self) -> int:
        return self.body + self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def lora(self) -> int:
        """Trained with LoRA on every projection and the rows of the new tokens (both matrices where untied)."""
        adapters = self.layers * sum(LORA_RANK * (i + o) for i, o in self.linear_shapes)
        return adapters + NEW_TOKENS * self.hidden * (1 if self.tied else 2)

    @property
    def activations(self) -> float:
        """Bytes of one micro-batch with gradient checkpointing: every layer's input, and one layer in full (bf16)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        one_layer = 8 * self.hidden + 3 * q + 3 * kv + 4 * self.ffn
        return TRAIN_TOKENS * 2 * (self.layers * self.hidden + one_layer)

    @property
    def full_mixed(self) -> float:
        """fp32 weights, gradients and two AdamW moments (16 bytes), and their bf16 copies under autocast (2)."""
        return 18 * self.parameters + self.activations

    @property
    def full_bf16(self) -> float:
        """The same states all in bf16 (`--dtype bfloat16`)."""
        return 8 * self.parameters + self.activations

    @property
    def lora_bf16(self) -> float:
        """A frozen bf16 base, fp32 states of what is trained, and one copy of each matrix that gets new rows."""
        copies = 2 * self.vocab * self.hidden * (1 if self.tied else 2)
        return 2 * self.parameters + 18 * self.lora + copies + self.activations

    @property
    def inference(self) -> float:
        """bf16 weights, the prompts' and beams' keys and values, and one chunk of scores."""
        positions = PROMPTS * (PROMPT_LENGTH + BEAMS * (LEVELS - 1))
        cache = positions * 2 * self.layers * self.kv_heads * self.head_dim * 2
        return 2 * self.parameters + cache + CHUNK * (2 + 4 + 4)

    @property
    def train_flops(self) -> float:
        """Per token: 2 forward, 2 forward again (checkpointing), 4 backward; the head only at labelled positions."""
        return 8 * self.body

    @property
    def request_flops(self) -> float:
        """Per request: the body on prompt and beam positions, the full head once per beam and level."""
        head = 2 * self.vocab * self.hidden * (1 + BEAMS * (LEVELS - 1))
        return 2 * self.body * (PROMPT_LENGTH + BEAMS * (LEVELS - 1)) + head


MODELS = [
    Model("Qwen3-0.6B", hidden=1024, ffn=3072, layers=28, heads=16, tied=True),
    Model("Qwen3-1.7B", hidden=2048, ffn=6144, layers=28, heads=16, tied=True),
    Model("Qwen3-4B", hidden=2560, ffn=9728, layers=36, heads=32, tied=True),
    Model("Qwen3-8B", hidden=4096, ffn=12288, layers=36, heads=32, tied=False),
]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def gib(value: float) -> str:
    return f"{value / GIB:.1f}"


def model_tables() -> str:
    """Of docs/hardware.md."""
    memory = table(
        [
            "GiB",
            "parameters",
            "full, fp32 states + bf16 autocast",
            "full, all bf16",
            f"LoRA r={LORA_RANK} + new rows",
            f"recommend, {PROMPTS} x {BEAMS} beams",
        ],
        [
            [m.name, f"{m.parameters / 1e9:.2f} B", gib(m.full_mixed), gib(m.full_bf16), gib(m.lora_bf16)]
            + [gib(m.inference)]
            for m in MODELS
        ],
    )
    minutes = table(
        ["minutes of full fine-tuning per 10 M tokens", *GPUS],
        [
            [m.name, *(f"{10e6 * m.train_flops / (flops * TRAIN_MFU) / 60:.1f}" for flops in GPUS.values())]
            for m in MODELS
        ],
    )
    requests = table(
        [f"requests per second, {BEAMS} beams", *GPUS],
        [[m.name, *(f"{flops * PREFILL_MFU / m.request_flops:,.0f}" for flops in GPUS.values())] for m in MODELS],
    )
    return "\n\n".join((memory, minutes, requests))


# Scale: what was measured on one core, and carries on in a line
DATA_S, DATA_BYTES = 273 / 100e6, (10.06 - 1.55) * GIB / 90e6  # per interaction: docs/reference/scale_measured.md
PACKAGES = 10.06 * GIB - 100e6 * DATA_BYTES  # what Python's packages take, whatever there is to prepare
ENCODE_S = 16.7 / 1e6  # per item, residual k-means of 384 numbers: docs/reference/tokenizers_measured.md
SERVED_BYTES = (9.7 - 2.9) * GIB / (1e7 - 3500)  # per item, front and engine: docs/reference/serving_measured.md
FRONT_S = 0.005  # CPU of a front per request: docs/reference/serving_measured.md
FEATURES, CODES, TITLE_TOKENS = 384, 256, 24  # numbers of an item, codes of a level, tokens of a title
ENCODER = 600e6  # parameters of a text encoder in the size of Qwen3-Embedding-0.6B
FULL, EPOCHS, BUSY = 10, 3, 0.6  # codes for each item, epochs of training, the share of a GPU that requests may take
ITEMS, INTERACTIONS, RATES = (
    (10**4, 10**5, 10**6, 10**7, 10**8),
    (10**6, 10**7, 10**8, 10**9),
    (1, 10, 100, 10**3, 10**4),
)
H100 = GPUS["H100"]


def power(number: int) -> str:
    return f"10{str(round(math.log10(number))).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def size(value: float) -> str:
    return f"{value / GIB:,.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:,.1f} MiB"


def levels(items: int) -> int:
    """Levels of 256 codes that have `FULL` Semantic IDs for every item."""
    return max(3, math.ceil(math.log(FULL * items, CODES)))


def gpus(model: Model, rate: float) -> int:
    return math.ceil(rate * model.request_flops / (H100 * PREFILL_MFU * BUSY))


def scale_tables() -> str:
    """Of docs/scale.md."""
    small, middle = MODELS[0], MODELS[1]
    of_items = table(
        ["items", f"levels of {CODES}", "texts to features", "features", "features to codes", "codes"]
        + ["new tokens", "catalogue in one server"],
        [
            [power(n), str(levels(n)), duration(n * TITLE_TOKENS * 2 * ENCODER / (H100 * PREFILL_MFU))]
            + [size(4 * FEATURES * n), duration(ENCODE_S * n), size(4 * levels(n) * n)]
            + [f"{CODES * levels(n):,}", size(SERVED_BYTES * n)]
            for n in ITEMS
        ],
    )
    of_interactions = table(
        ["interactions", "prepared in one process", "its memory", f"tokens, {EPOCHS} epochs"]
        + [f"{m.name}, full, {count} H100" for m in (small, middle) for count in (1, 8)],
        [
            [power(n), duration(DATA_S * n), size(PACKAGES + DATA_BYTES * n), f"{EPOCHS * LEVELS * n / 1e6:,.0f} M"]
            + [
                duration(EPOCHS * LEVELS * n * m.train_flops / (H100 * TRAIN_MFU * count))
                for m in (small, middle)
                for count in (1, 8)
            ]
            for n in INTERACTIONS
        ],
    )
    of_rates = table(
        ["requests a second", *(f"{m.name}, H100" for m in MODELS), "cores of fronts"],
        [
            [power(rate) if rate > 1 else "1", *(f"{gpus(m, rate):,}" for m in MODELS)]
            + [f"{max(1, math.ceil(rate * FRONT_S / BUSY)):,}"]
            for rate in RATES
        ],
    )
    return "\n\n".join((of_items, of_interactions, of_rates))


PAGES = {"hardware.md": model_tables, "scale.md": scale_tables}


def written(text: str, tables: str) -> str:
    """A page with its tables exchanged."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{tables}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into their pages")
    args = parser.parse_args()
    for page, tables in PAGES.items():
        print(f"{tables()}\n")
        if args.write:
            text = (DOCS / page).read_text(encoding="utf-8")
            (DOCS / page).write_text(written(text, tables()), encoding="utf-8")
