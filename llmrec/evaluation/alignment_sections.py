"""The sections of the alignment report: functions `(recommender, prompt, sample) → {"rows", "figures", "ci", ...}`."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData, ids_to_rows
from llmrec.decoding import ScoredItem
from llmrec.evaluation.bootstrap import intervals_of
from llmrec.evaluation.content_search import ContentSearch
from llmrec.evaluation.evaluate import semid_groups
from llmrec.evaluation.metrics import first_positions, row_metrics
from llmrec.instructions import TASKS, Catalogue, Prompt, Template, target_rows
from llmrec.instructions.item_words import same_text
from llmrec.instructions.wishes import RELATIVE, Wishes, kinds_of
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.protocol import requests_of

K = 10
WISHES = (*RELATIVE, "with")
_WORDS = {
    "title_to_item": "title",
    "description_to_item": "description",
    "query_to_item": "query",
}  # the slot asked by


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the sections draw their rows from.

    Args:
        targets: rows of valid or test, for what needs histories that nothing was trained on.
        rows: at most so many in a section, of each kind of wish, and blocks of general text.
        bootstrap: resamples of the intervals; 0 = none.
        text_encoder, cache_dir: of the search by content that ours is compared with (`ContentSearch`).
    """

    data: PreparedData
    targets: pa.Table
    rows: int = 200
    seed: int = 0
    bootstrap: int = 1000
    text_encoder: str = "auto"
    cache_dir: str | None = None

    @cached_property
    def content(self) -> ContentSearch:
        return ContentSearch(self.data, self.text_encoder, self.cache_dir)

    def of_task(self, task: str, recommender: LLMRecommender) -> list[dict]:
        """Rows of a task that is about single items."""
        try:
            table = TASKS[task].rows(self.data, recommender.config.max_history, np.random.default_rng(self.seed))
        except ValueError as error:  # it lacks a column
            raise LeftOut(str(error)) from error
        return self.drawn(table.filter(pc.is_in(table["about"], pa.array(recommender.index.items)))).to_pylist()

    def of_targets(self, recommender: LLMRecommender) -> pa.Table:
        """Evaluation rows with a history, whose target the model may recommend."""
        known = pc.is_in(self.targets["target"], pa.array(recommender.index.items))
        filled = pc.greater(pc.list_value_length(self.targets["history"]), 0)
        return self.drawn(self.targets.filter(pc.and_(known, filled)))

    def drawn(self, table: pa.Table) -> pa.Table:
        if not table.num_rows:
            raise LeftOut("there is no row for it: the columns that it speaks of are empty")
        chosen = np.random.default_rng(self.seed).permutation(table.num_rows)[: self.rows]
        return table.take(pa.array(np.sort(chosen)))

    def means(self, values: Mapping[str, Sequence[float]], units: Sequence[str]) -> dict:
        """`{"rows", "figures", "ci"}`: means over rows and their 95 % intervals (none without resamples). `units` are
        the users, or the items, that rows are of: rows of one are drawn together."""
        matrix = np.stack([np.asarray(column, np.float64) for column in values.values()], 1)
        figures = dict(zip(values, matrix.mean(0).tolist()))
        return {"rows": len(matrix), "figures": figures, "ci": intervals_of(values, units, self.bootstrap, self.seed)}

    def catalogue(self, recommender: LLMRecommender) -> Catalogue:
        """What tasks judge answers by: the columns of the data, in the Semantic IDs that the model writes first."""
        return Catalogue(recommender.index, self.data.items).view(next(iter(recommender.views)))


class LeftOut(Exception):
    """The data has nothing that a section could ask; the message says what is missing."""


def retrieval(
    recommender: LLMRecommender, answers: Sequence[Sequence[int]], targets: Sequence[str], ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """recall@k of every row at item level (see `llmrec.evaluation.metrics`): `{"recall@1": float64 [n], ...}`. Answers
    are numbers in `recommender.index.items`, best first; targets are item ids."""
    items = pa.array(recommender.index.items)
    groups = semid_groups(recommender.index, items)
    lists = np.full((len(answers), max(ks)), -1, np.int64)
    for row, hits in enumerate(answers):
        lists[row, : len(hits)] = groups[hits]
    wanted = groups[ids_to_rows(pa.array(targets), items)]
    per_row = row_metrics(first_positions(lists, wanted), np.bincount(groups)[wanted], ks)
    return {f"recall@{k}": per_row[f"recall@{k}"] for k in ks}


def prefixes(
    recommender: LLMRecommender, answers: Sequence[Sequence[ScoredItem]], targets: Sequence[str]
) -> dict[str, np.ndarray]:
    """Whether the first answer's Semantic ID agrees with the target's up to each level but the last."""
    index, within = recommender.index, next(iter(recommender.views.values()))
    rows = np.arange(len(index)) if within is None else np.flatnonzero(within)
    codes = index.codes[:, (index.codes[rows] >= 0).any(0)]
    of_item: dict[str, list[int]] = {}
    for row in rows.tolist():
        of_item.setdefault(index.item_ids[row], []).append(row)
    agree = np.stack([common_prefixes(codes[hits[0].row], codes[of_item[t]]) for hits, t in zip(answers, targets)])
    return {f"prefix@{level + 1}": agree[:, level] for level in range(agree.shape[1] - 1)}


def common_prefixes(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """bool [levels]: whether a Semantic ID (int [levels], -1 where a level holds no code) agrees up to each level with
    the one of an item (int [n, levels]) that has the longest common prefix."""
    agree = np.cumprod(codes == wanted, axis=1)
    return agree[agree.sum(1).argmax()].astype(bool)


def title_to_item(recommender: LLMRecommender, prompt: Prompt, sample: Sample) -> dict:
    rows = sample.of_task(prompt.task, recommender)
    answers = best_items(recommender, prompt, rows)
    catalogue, score, items = sample.catalogue(recommender), TASKS[prompt.task].score, recommender.index.items
    exact = [score(catalogue, row, items[hits[0].item]) for row, hits in zip(rows, answers)]
    targets = [row["about"] for row in rows]
    recalls = found_by_words(recommender, prompt, sample, rows, answers, (K,))
    return sample.means({"exact": exact, **prefixes(recommender, answers, targets), **recalls}, targets)


def asked_to_item(recommender: LLMRecommender, prompt: Prompt, sample: Sample) -> dict:
    """Descriptions and queries: does the constrained beam hold the item?"""
    rows = sample.of_task(prompt.task, recommender)
    answers = best_items(recommender, prompt, rows)
    recalls = found_by_words(recommender, prompt, sample, rows, answers, (1, K))
    return sample.means(recalls, [row["about"] for row in rows])


def found_by_words(
    recommender: LLMRecommender,
    prompt: Prompt,
    sample: Sample,
    rows: list[dict],
    answers: Sequence[Sequence[ScoredItem]],
    ks: Sequence[int],
) -> dict[str, np.ndarray]:
    """recall@k of every row, float64 [n] each: of `answers`; in the unseen wordings (row i in wording i modulo their
    number); of a search by content for the same words; ours minus that, in unseen wordings where there are any."""
    targets = [row["about"] for row in rows]
    ours, how = retrieval(recommender, _items(answers), targets, ks), ""
    values = dict(ours)
    if prompt.unseen:
        unseen = best_items(recommender, prompt, rows, prompt.unseen)
        ours, how = retrieval(recommender, _items(unseen), targets, ks), ", unseen"
        values |= {f"{name}{how} wordings": recalls for name, recalls in ours.items()}
    catalogue, slots = sample.catalogue(recommender), TASKS[prompt.task].slots
    asked = {"targets": [], "variation": recommender.ways()[0][1]}  # as `task_prompts` asks
    words = [slots(catalogue, asked | row, "")[_WORDS[prompt.task]] for row in rows]
    content = row_metrics(sample.content.ranks(words, targets), ks=ks)
    for name, recalls in ours.items():
        values[f"{name}, content"] = content[name]
        values[f"{name}{how} minus content"] = recalls - content[name]
    return values


def item_to_title(recommender: LLMRecommender, prompt: Prompt, sample: Sample) -> dict:
    rows = sample.of_task(prompt.task, recommender)
    texts, catalogue = _words(recommender, prompt, rows), sample.catalogue(recommender)
    alike = [TASKS[prompt.task].score(catalogue, row, text) for row, text in zip(rows, texts)]
    exact = [same_text(text, catalogue.title(row["about"])) for row, text in zip(rows, texts)]
    return sample.means({"token F1": alike, "exact": exact}, [row["about"] for row in rows])


def steering(recommender: LLMRecommender, prompt: Prompt, sample: Sample) -> dict:
    """Wishes of held-out combinations, in wordings and phrases that no training row used.

    `precision@10` is over rows that at least 10 items satisfy; `all` is over all rows, with what a list that knows
    everything would have (`possible`). Beside it `sequential@10`, the same model asked for the next item after the
    item in question without a wish, and `chance`, the share of the catalogue that satisfies.
    """
    catalogue, score, items = sample.catalogue(recommender), TASKS[prompt.task].score, recommender.index.items
    rows = wish_rows(catalogue.wishes, set(items), sample)
    answers = best_items(recommender, prompt, rows, prompt.unseen or prompt.templates)
    wished = [[items[hit.item] for hit in hits] for hits in answers]
    following = recommender.recommend([[row["about"]] for row in rows], K, Filter(exclude_seen=True))
    following = [[one.item_id for one in hits] for hits in following]

    def precision(lists: list[list[str]]) -> list[float]:
        return [sum(score(catalogue, row, item) for item in one) / K for row, one in zip(rows, lists)]

    counts = [len(row["satisfying"]) for row in rows]
    values = {
        "precision@10": precision(wished),
        "sequential@10": precision(following),
        "chance": [count / sample.data.items.num_rows for count in counts],
        "possible": [min(K, count) / K for count in counts],
    }
    values = {name: np.array(column, np.float64) for name, column in values.items()}
    enough, kinds = values["possible"] == 1, np.array([kinds_of(row["wish"]) for row in rows])
    about = np.array([row["about"] for row in rows])

    def of(mask: np.ndarray) -> dict:
        some = {name: column[mask & enough] for name, column in values.items() if name != "possible"}
        few = {"rows": 0, "figures": {}, "ci": {}}
        of_enough = sample.means(some, about[mask & enough]) if (mask & enough).any() else few
        return {**of_enough, "all": sample.means({name: column[mask] for name, column in values.items()}, about[mask])}

    return {
        **of(np.ones(len(rows), bool)),
        "kinds": {kind: of(kinds == kind) for kind in WISHES if (kinds == kind).any()},
        "wordings": "unseen" if prompt.unseen else "trained, because the prompt has no unseen ones",
    }


def wish_rows(wishes: Wishes, known: set[str], sample: Sample) -> list[dict]:
    """Held-out rows of task like_but, `sample.rows` of each kind if there are, with the items that satisfy them."""
    rng = np.random.default_rng(sample.seed)
    by_kind: dict[str, list[dict]] = {kind: [] for kind in WISHES}
    for number in rng.permutation(len(wishes.ids))[: 50 * sample.rows]:
        item = wishes.ids[number]
        if all(len(rows) >= sample.rows for rows in by_kind.values()):
            break
        for wish, satisfying in wishes.relative_to(item) if item in known else ():
            of_kind = by_kind[kinds_of(wish)]
            if wishes.held_out(wish, item) and len(of_kind) < sample.rows:
                asked = {"about": item, "wish": wish, "history": [], "targets": [], "unseen": True}
                of_kind.append(asked | {"variation": int(rng.integers(2**31)), "satisfying": satisfying.tolist()})
    rows = [row for of_kind in by_kind.values() for row in of_kind]
    if not rows:
        raise LeftOut("no wish is held out of training: the items have no categories, brands or prices that differ")
    return rows


def explanation(recommender: LLMRecommender, prompt: Prompt, sample: Sample) -> dict:
    """Why the target of an evaluation row was recommended: what of the named attributes is the target's own?

    `of another item` is the faithfulness of the same texts to the target of another row: what general talk is worth.
    """
    catalogue, score = sample.catalogue(recommender), TASKS[prompt.task].score
    if not any(catalogue.attributes.of_item.values()):
        raise LeftOut("the items have no brand, category or price")
    table = sample.of_targets(recommender)
    users = np.array(table["user_id"].to_pylist())
    rows = target_rows(table, recommender.config.max_history)
    rows = [{**row, "about": row["targets"][0], "targets": [], "target_behaviours": []} for row in rows]
    texts = _words(recommender, prompt, rows)
    named = np.array([bool(catalogue.attributes.named(text)) for text in texts])
    faithful = np.array([score(catalogue, row, text) for text, row in zip(texts, rows)])
    other = np.array([score(catalogue, row, text) for text, row in zip(texts, rows[1:] + rows[:1])])
    result = sample.means({"coverage": named & (faithful > 0)}, users)
    if named.any():
        of_named = sample.means({"faithfulness": faithful[named], "of another item": other[named]}, users[named])
        result = {name: {**of_named[name], **result[name]} for name in ("figures", "ci")} | {"rows": len(rows)}
    return {**result, "examples": [{"item": row["about"], "text": text} for text, row in zip(texts[:3], rows)]}


def robustness(recommender: LLMRecommender, prompt: Prompt, sample: Sample) -> dict:
    """recall@10 of the next item under every wording of the prompt (LC-Rec), as `recommend` answers it."""
    rows = sample.of_targets(recommender)
    targets, place = rows["target"].to_pylist(), {item: i for i, item in enumerate(recommender.index.items)}
    recalls: dict[str, list[float]] = {"trained": [], "unseen": []}
    for name, templates in (("trained", prompt.templates), ("unseen", prompt.unseen)):
        for template in templates:
            asking = _asking(recommender, dataclasses.replace(prompt, templates=(template,)))
            histories, wanted = requests_of(asking, rows)
            lists = [[place[one.item_id] for one in hits] for hits in asking.recommend(histories, K, **wanted)]
            recalls[name].append(float(retrieval(asking, lists, targets, (K,))[f"recall@{K}"].mean()))
    figures = {
        f"recall@{K} {name} {what}": float(of(values))
        for name, values in recalls.items()
        for what, of in (("mean", np.mean), ("min", np.min), ("max", np.max))
        if values
    }
    return {"rows": rows.num_rows, "figures": figures, "ci": {}, "templates": recalls}


def _asking(recommender: LLMRecommender, prompt: Prompt) -> LLMRecommender:
    prompt = dataclasses.replace(prompt, semids=prompt.semids or recommender.prompt.semids)
    catalogue = recommender.renderer.catalogue
    return LLMRecommender(
        recommender.model,
        recommender.tokenizer,
        recommender.index,
        catalogue.items,
        dataclasses.replace(recommender.config, prompt=prompt.to_dict()),
        recommender.batch_size,
        catalogue.sequence_tokenizer,
    )


def best_items(
    recommender: LLMRecommender, prompt: Prompt, rows: list[dict], templates: Sequence[Template] = ()
) -> list[list[ScoredItem]]:
    """The best items after the prompt of each row, as `ask` gives them; `item` is a number in
    `recommender.index.items`."""
    prompts = recommender.token_ids(recommender.task_prompts(prompt, rows, templates))
    requests = [TASKS[prompt.task].narrowed(None, row.get("about")) for row in rows]
    return recommender.search(prompts, [K] * len(rows), requests=requests)


def _items(answers: Sequence[Sequence[ScoredItem]]) -> list[list[int]]:
    return [[hit.item for hit in hits] for hits in answers]


def _words(recommender: LLMRecommender, prompt: Prompt, rows: list[dict]) -> list[str]:
    """Greedy answers to rows, at most 16 tokens longer than the longest right one."""
    right = [recommender.renderer.completion(prompt, row) for row in rows]
    longest = max(map(len, recommender.tokenizer(right, add_special_tokens=False)["input_ids"]))
    return recommender.generate_text(prompt, rows, longest + 16)
