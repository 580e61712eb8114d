"""Campaigns against llmrec, longer than its tests: what they counted stands in docs/reliability.json and its page.

    python scripts/reliability.py decode --minutes 3   # random catalogues: trie, mask and search against naive ones
    python scripts/reliability.py input --minutes 5    # damaged files and settings for every stage
    python scripts/reliability.py kill --minutes 5     # kill -9 at random moments, then go on, then compare
    python scripts/reliability.py load --minutes 3     # scripts/load_serving.py; needs vLLM
    python scripts/reliability.py strangers --minutes 60  # with an abuser and engines that are killed
    python scripts/reliability.py fronts --minutes 3   # scripts/load_fronts.py: two servers; needs nginx too
    python scripts/reliability.py requests --cases 20000  # schemathesis' requests to a real server; needs vLLM
    python scripts/reliability.py folders --cases 5000    # damaged model folders
    python scripts/reliability.py table                # only writes the page's table again

Each needs a CPU only. The exit status is 1 where a fault was found; the JSON names it. SIGTERM ends a campaign early;
what was counted until then is written, with the cases (or minutes of load) that it had.
"""

import argparse
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import small_way
import strange_input
import torch
from tqdm.auto import tqdm

from llmrec.files import read_json, write_json

ROOT = Path(__file__).parents[1]
FIGURES, PAGE = ROOT / "docs/reliability.json", ROOT / "docs/reliability.md"
MARKS = "<!-- campaigns: python scripts/reliability.py table -->", "<!-- end -->"


class Campaign:
    """Counts and faults, until its minutes are over, it has its cases, or it is told to stop."""

    def __init__(self, minutes: float, cases: int | None = None):
        self.minutes, self.cases, self.done = minutes, cases, 0
        self.until = time.monotonic() + 60 * minutes if cases is None else math.inf
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.load: subprocess.Popen | None = None
        self._bar = None

    def begin(self, what: str) -> None:
        """A bar over the cases."""
        self._bar = tqdm(total=self.cases, desc=what, mininterval=10)
        self.counts[what] = 0
        if self.cases is None and self.goes_on:
            self.until = time.monotonic() + 60 * self.minutes

    def did(self, cases: int, counts: dict) -> None:
        self.done += cases
        self.counts.update({self._bar.desc.removesuffix(": "): cases})
        self.counts.update(counts)
        self._bar.update(cases)

    @property
    def left(self) -> int:
        return (2**31 if self.cases is None else self.cases - self.done) if time.monotonic() < self.until else 0

    @property
    def goes_on(self) -> bool:
        return self.left > 0

    def stop(self, *_) -> None:
        self.until = -math.inf
        if self.load is not None:
            self.load.terminate()

    def check(self, good: bool, fault: str) -> None:
        if not good:
            self.faults.append(fault)
            print(f"fault: {fault}", flush=True)


def decode(campaign: Campaign, seed: int) -> None:
    """Random catalogues: what may follow every prefix, and the lists of every search, are those of naive Python."""
    sys.path.append(str(ROOT / "tests/decoding"))
    import reference_search as naive

    from llmrec.decoding import tree_beam_search
    from llmrec.decoding.logits_processor import constrained_generate
    from llmrec.decoding.trie import SemIDTrie

    rng = np.random.default_rng(seed)
    counts = campaign.counts
    counts.update({"catalogues": 0, "prefixes": 0, "searches": 0, "generate searches": 0})
    while campaign.goes_on:
        number = int(rng.integers(2**31))
        ragged, depth, width = bool(rng.integers(2)), int(rng.integers(1, 6)), int(rng.integers(2, 13))
        rows = int(rng.integers(1, 200))
        semids = naive.random_semids(number, rows, depth, ragged, width)
        what = f"catalogue {number} ({len(semids)} of {rows} rows, depth {depth}, width {width}, ragged {ragged})"
        trie, catalogue = SemIDTrie(naive.matrix(semids), naive.EOS), set(semids)
        for prefix in {semid[:length] for semid in semids for length in range(min(len(semid) + 1, trie.depth))}:
            node = torch.tensor([0])
            for level, token in enumerate(prefix):
                node = trie.step(node, torch.tensor([token]), level)
            children = trie.children(node, len(prefix))
            tokens = trie.vocab[len(prefix)][children.column[0]][children.valid[0]].tolist()
            campaign.check(tokens == naive.next_tokens(prefix, catalogue), f"{what}: after {prefix} come {tokens}")
            counts["prefixes"] += 1
        model = naive.tiny_model(["qwen3", "qwen2", "llama"][number % 3], bool(number % 2), number % 1000)
        normalize, beams = ["vocabulary", "catalogue"][number % 2], int(rng.integers(1, 12))
        ids, mask = naive.prompts(rng.integers(1, 16, 2).tolist(), seed=number)
        output = tree_beam_search(model, ids, mask, trie, beams, normalize=normalize)
        generated = (
            constrained_generate(model, ids, mask, trie, beams, normalize=normalize)
            if rows < 40 and beams > 1
            else None
        )
        for row in range(2):
            ours = naive.found(output, row)
            theirs = naive.reference_search(model, ids[row][mask[row].bool()].tolist(), semids, beams, normalize)
            campaign.check(_same_lists(ours, theirs), f"{what}: {beams} beams, {normalize}: {ours} for {theirs}")
            counts["searches"] += 1
            if generated is not None:
                places = slice(row * beams, (row + 1) * beams)
                tokens = generated.sequences[places, ids.shape[1] :].tolist()
                scores = generated.sequences_scores[places].tolist()
                lists = [(tuple(t for t in one if t not in (naive.EOS, 0)), s) for one, s in zip(tokens, scores)]
                lists = [entry for entry in lists if entry[1] > -1e8]
                campaign.check(_same_lists(lists, theirs), f"{what}: generate, {beams} beams: {lists} for {theirs}")
                counts["generate searches"] += 1
        counts["catalogues"] += 1


def _same_lists(ours: list, theirs: list, tolerance: float = 1e-4) -> bool:
    """Equal places, but for neighbours whose scores are nearer than what float32 tells apart."""
    if len(ours) != len(theirs):
        return False
    scores = dict(theirs)
    return all(
        abs(score - other) < tolerance and (semid == wanted or abs(scores.get(semid, other) - other) < tolerance)
        for (semid, score), (wanted, other) in zip(ours, theirs)
    )


def bad_input(campaign: Campaign, seed: int) -> None:
    """Every stage with one file of its input damaged, or one setting replaced. It refuses, naming the file or the
    setting, and calls nothing finished; or what is damaged is not read, and the result is the same."""
    with tempfile.TemporaryDirectory() as temporary:
        way = Path(temporary) / "way"
        small_way.preload()
        seconds = small_way.build(way)
        cases = []
        for name, stage in small_way.STAGES.items():
            settings = small_way.settings_of(way, name)
            for key, folder in stage.inputs.items():
                files = [way / folder] if (way / folder).is_file() else sorted((way / folder).rglob("*"))
                for file in files:
                    if file.is_file() and file.suffix in (".json", ".parquet", ".safetensors", ".npy"):
                        if "checkpoint-" not in str(file) and seconds[name] < 15:
                            cases += [(name, key, file.relative_to(way), damage) for damage in small_way.damages(file)]
            for key in settings:
                cases += [(name, key, None, value) for value in (-1, "no such thing", [], {"a": 1}, None)]
            cases.append((name, "no_such_key", None, 1))
        random.Random(seed).shuffle(cases)
        expected = {name: small_way.content(way / stage.output) for name, stage in small_way.STAGES.items()}
        campaign.until += sum(seconds.values())
        for number, case in enumerate(cases):
            if not campaign.goes_on:
                break
            _bad_case(campaign, way, Path(temporary) / f"case-{number}", case, expected)


def _bad_case(campaign: Campaign, way: Path, scratch: Path, case: tuple, expected: dict) -> None:
    name, key, file, damage = case
    scratch.mkdir()
    output = scratch / Path(small_way.STAGES[name].output).name
    settings = small_way.settings_of(way, name, output)
    if file is None:
        settings[key], clue = damage, [key, key.removesuffix("_dir"), str(damage)]
        what = f"{name}: {key}: {json.dumps(damage)}"
    else:
        top = file.parts[0]
        copy = scratch / top
        shutil.copytree(way / top, copy) if (way / top).is_dir() else shutil.copy(way / top, copy)
        settings[key] = str(copy)
        small_way.damages(way / file)[damage](scratch / file)
        # A recommender says that the data are not those that it was trained on.
        clue, what = [file.name, str(copy), "was trained on other data"], f"{name}: {file} {damage}"
    outcome = small_way.run(name, settings, scratch / "run.log")
    campaign.counts["cases"] += 1
    campaign.counts["settings" if file is None else "files"] += 1
    if outcome.error:
        campaign.counts["refused"] += 1
        clear = outcome.error in ("ValueError", "OSError", "SystemExit") and any(
            one in outcome.message for one in clue
        )
        first = outcome.message.strip().splitlines()[0] if outcome.message.strip() else ""
        first = first.replace(f"{scratch.parent}/", "")
        campaign.check(clear, f"{what}: {outcome.error}: {first[:160]}")
        finished = (
            output.is_file() or (output / "stage.json").exists() and read_json(output / "stage.json")["complete"]
        )
        campaign.check(not finished, f"{what}: the output is called finished")
    elif file is None:
        campaign.counts["accepted settings"] += 1
    else:
        same = small_way.content(output) == expected[name]
        campaign.counts["not read: same result" if same else "other result"] += 1
        campaign.check(same, f"{what}: no word, and another result")
    shutil.rmtree(scratch)


def kill(campaign: Campaign, seed: int) -> None:
    """Kills every stage at random moments, lets it go on, and compares with a run that was not killed."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        way, again = Path(temporary) / "way", Path(temporary) / "again"
        again.mkdir()
        small_way.preload()
        seconds = small_way.build(way)
        campaign.until += sum(seconds.values())
        while campaign.goes_on:
            for name, stage in small_way.STAGES.items():
                if not campaign.goes_on:
                    break
                output = again / Path(stage.output).name
                settings, kills = small_way.settings_of(way, name, output), 0
                for _ in range(rng.randint(1, 3)):
                    outcome = small_way.run(name, settings, again / "run.log", rng.uniform(0, seconds[name]))
                    campaign.check(not outcome.error, f"{name}: {outcome.error}: {outcome.message[:160]}")
                    kills += outcome.killed
                outcome = small_way.run(name, settings, again / "run.log")
                campaign.counts[f"kills of {name}"] += kills
                campaign.counts["compared"] += 1
                same = not outcome.error and small_way.content(output) == small_way.content(way / stage.output)
                campaign.check(
                    same, f"{name}: after {kills} kills: {_difference(outcome, output, way / stage.output)}"
                )
                left = [path.name for path in again.rglob(".*") if "partial" in path.name or path.suffix == ".lock"]
                campaign.check(not left, f"{name}: after {kills} kills there lie {left}")
                shutil.rmtree(again)
                again.mkdir()


def _difference(outcome: small_way.Outcome, output: Path, reference: Path) -> str:
    if outcome.error:
        return f"{outcome.error}: {outcome.message[:160]}"
    ours, theirs = small_way.content(output), small_way.content(reference)
    return f"these differ: {sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))}"


LOADS = {
    "load": ["load_serving.py"],
    "strangers": ["load_serving.py", "--strangers"],
    "fronts": ["load_fronts.py"],
}


def load(campaign: Campaign, minutes: float, script: str, *flags: str) -> None:
    """scripts/load_serving.py: twice the load that a server can bear, a catalogue that changes, and kill -9; or
    scripts/load_fronts.py: two servers of one catalogue that are killed in turn."""
    if flags:  # an engine is killed every minute, in an hour every five
        flags = (*flags, "--kill_every", str(max(60.0, 5 * minutes)))
    with tempfile.TemporaryDirectory() as temporary:
        figures = Path(temporary) / "load.json"
        command = [sys.executable, str(ROOT / "scripts" / script), "--minutes", str(minutes), *flags]
        campaign.load = subprocess.Popen([*command, "--json", str(figures)])
        try:
            status = campaign.load.wait()
        except KeyboardInterrupt:
            campaign.load.terminate()
            campaign.load.wait()
            raise
        if not figures.exists():
            sys.exit(f"exit status {status}, before anything was counted")
        written = read_json(figures)
        found, campaign.minutes = written["figures"], written["minutes"]
    names = {"sent": "requests", "answered": "answered", "refused": "refused with Retry-After", "swaps": "changes"}
    names |= {"kills": "kills of the engine", "left": "batches whose sender left"}
    names |= {name: name for name in found if name.startswith(("kills of", "servers told"))}
    names |= {"slowest_back_s": "s from a kill to the next answer at most"}
    names |= {f"polite_p{share}_ms": f"ms p{share} of one at a time" for share in (50, 99)}
    names |= {f"memory_mib_{when}": f"MiB at the {end}" for when, end in (("first", "beginning"), ("last", "end"))}
    campaign.counts.update({text: int(found[name]) for name, text in names.items() if name in found})
    campaign.check(not status, f"exit status {status}: {found}")


CAMPAIGNS = {"decode": decode, "input": bad_input, "kill": kill}
STRANGE = {"requests": strange_input.requests, "folders": strange_input.folders}


def write_table() -> None:
    rows = ["| campaign | what was counted | faults |", "|---|---|---:|"]
    for found in read_json(FIGURES).values():
        counts = "; ".join(f"{value:,} {what}" for what, value in found["counts"].items())
        rows.append(f"| `{found['command']}` | {counts} | {len(found['faults'])} |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    text = "\n".join(rows)
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("campaign", choices=[*CAMPAIGNS, *LOADS, *STRANGE, "table"])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--cases", type=int, help="of requests and folders: so many, in place of minutes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.cases is not None and args.campaign not in STRANGE:
        parser.error(f"--cases is for {' and '.join(STRANGE)}: give --minutes")
    if args.campaign != "table":
        campaign = Campaign(args.minutes, args.cases)
        signal.signal(signal.SIGTERM, campaign.stop)
        if args.campaign in LOADS:
            load(campaign, args.minutes, *LOADS[args.campaign])
        else:
            (CAMPAIGNS | STRANGE)[args.campaign](campaign, args.seed)
        if not campaign.faults and not any(campaign.counts.values()):
            sys.exit("it ended before anything was counted")
        much = f"--cases {campaign.done}" if args.campaign in STRANGE else f"--minutes {campaign.minutes:g}"
        command = f"python scripts/reliability.py {args.campaign} {much} --seed {args.seed}"
        figures = read_json(FIGURES) if FIGURES.exists() else {}
        figures[args.campaign] = {"command": command, "counts": dict(campaign.counts), "faults": campaign.faults}
        write_json(FIGURES, {name: figures[name] for name in (*CAMPAIGNS, *LOADS, *STRANGE) if name in figures})
        print(json.dumps(figures[args.campaign], indent=2))
        write_table()
        sys.exit(bool(campaign.faults))
    write_table()


if __name__ == "__main__":
    main()
