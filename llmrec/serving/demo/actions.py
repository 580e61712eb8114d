"""What the parts of the page do: each method takes values of the page and returns new ones."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import gradio as gr

from llmrec.serving.demo import address, views
from llmrec.serving.demo.client import Client, ServerError
from llmrec.serving.demo.questions import QUESTIONS, body, typed
from llmrec.serving.demo.tree_view import draw
from llmrec.serving.demo.users import Users

PLAIN = ("item_id", "title", "description", "source_id")  # seldom what a condition is about
LISTS = ("list", "large_list", "fixed_size_list", "struct")  # columns that no condition fits
NOT_SEARCHED = views.empty("Nothing searched yet", "What you find is listed here, to be added.")
FIRST = views.empty("Nothing asked yet", "Build a history on the left, then press Recommend.")
NO_TREE = views.empty("No tree yet", "It lights up here, level by level, with the recommendations.")
WHY = views.quiet("Press Why? beside a recommended item.")
NO_WORDS = views.quiet("This server writes no explanations: they need its mode generate.")


class Actions:
    """Bound to the servers of one page; who calls them is in the arguments, so that people do not share anything.

    Args:
        clients: of one server, or of several to compare; catalogue, search and users are those of the first.
    """

    def __init__(self, clients: Sequence[Client], users: Users | None):
        self.clients, self.users = clients, users

    def connect(self, key: str):
        """header; of every server name, list and why; columns; who explains; choices of a condition's column and of a
        limit's column."""
        with ThreadPoolExecutor() as pool:
            servers = [*pool.map(lambda client: _Server(client.with_key(key)), self.clients)]
        panels, first, no_limit = [], servers[0], ("no limit", "")
        for one in servers:
            words = WHY if one.explains or one.error else NO_WORDS
            panels += [views.heading(one.name, len(servers) > 1), one.error or FIRST, words]
        facts = (first.catalogue["items"], first.catalogue["version"]) if first.catalogue else ()
        columns = first.catalogue.get("columns", {}).items()
        columns = {name: kind for name, kind in columns if not kind.startswith(LISTS)}
        order = sorted(columns, key=lambda name: name in PLAIN)
        return (
            views.header(" · ".join(one.name for one in servers), *facts, alive=not first.error),
            *panels,
            columns,
            [one.explains for one in servers],
            gr.update(choices=order, value=next(iter(order), None)),
            gr.update(choices=[no_limit, *((name, name) for name in order)], value=""),
        )

    def restore(self, query: str, columns: dict, explains: list, key: str):
        """For the query of the page's address: history, its list, the target, question, text, items, beams, seen,
        conditions, their list, most, group, and what `recommend` returns."""
        notice = ""
        try:
            asked = address.read(query, columns)
            items = self.clients[0].with_key(key).items([*asked.item, *filter(None, [asked.next])])
        except (ValueError, ServerError) as error:
            asked, items, notice = address.Asked(), [], views.notice(str(error), "warning")
        named = [{"item_id": item["item_id"], "title": item["title"]} for item in items]
        target = named.pop() if asked.next else None
        history = [item | {"behaviour": kind} for item, kind in zip(named, asked.kind or [None] * len(named))]
        question, text, most, group = asked.question, asked.text, asked.most, asked.each
        k, beams, seen, where = asked.k, asked.beams, bool(asked.seen), [*asked.where]
        if notice:
            result = self._same(notice, explains)
        elif asked == address.Asked():
            result = [gr.skip()] * (3 * len(explains) + 1)
        else:
            form = question, text, k, beams, seen, where, most, group
            result = self.recommend(history, target, *form, key, explains)
        field = self.ask(question) | {"value": text}
        shown = views.conditions(where)
        return (
            history,
            views.history(history),
            target,
            question,
            field,
            k,
            beams,
            seen,
            where,
            shown,
            most,
            group,
            *result,
        )

    def search(self, query: str, key: str) -> str:
        if not query.strip():
            return NOT_SEARCHED
        try:
            return views.found(self.clients[0].with_key(key).search(query.strip()), query.strip())
        except ServerError as error:
            return views.notice(str(error), "error")

    def add(self, history: list[dict], event: gr.EventData):
        """history, its list, the target: a history that was changed has no true next item."""
        return self._chosen([*history, {"item_id": event.item, "title": event.title}])

    def remove(self, history: list[dict], event: gr.EventData):
        place = int(event.place)
        return self._chosen(history[:place] + history[place + 1 :])

    def clear(self):
        return self._chosen([])

    def pick(self, number: int | None, *request):
        """For a user of the data: history, its list, the target, and what `recommend` returns."""
        if number is None:
            return *self._chosen([]), *self._same(FIRST, request[-1])
        row, key = self.users.rows[number], request[-2]
        kinds = row.get("behaviours") or [None] * len(row["history"])
        try:
            items = self.clients[0].with_key(key).items([*row["history"], row["target"]])
        except ServerError as error:
            return *self._chosen([]), *self._same(views.notice(str(error), "error"), request[-1])
        *before, target = [{"item_id": item["item_id"], "title": item["title"]} for item in items]
        history = [item | {"behaviour": kind} for item, kind in zip(before, kinds)]
        return history, views.history(history), target, *self.recommend(history, target, *request)

    def ask(self, question: str):
        asked = QUESTIONS[question]
        return gr.update(label=asked.label, placeholder=asked.example, interactive=bool(asked.field), value="")

    def condition(self, where: list, column: str | None, operator: str, value: str, columns: dict):
        """conditions, their list and the emptied field of the value."""
        if not column or not value.strip():
            return where, views.conditions(where), value
        try:
            where = [*where, [column, operator, typed(value.strip(), operator, columns[column])]]
        except ValueError as error:
            return where, views.notice(str(error), "warning") + views.conditions(where), value
        return where, views.conditions(where), ""

    def drop(self, where: list, event: gr.EventData):
        place = int(event.place)
        where = where[:place] + where[place + 1 :]
        return where, views.conditions(where)

    def recommend(self, history, target, question, text, k, beams, seen, where, most, group, key, explains):
        """Of every server list, tree and why; and the titles of what was recommended by item id."""
        at_most = {group: int(most or 1)} if group else None
        try:
            request = body(history, question, text, int(k), beams or None, seen, where, at_most)
        except ValueError as error:
            return self._same(views.notice(str(error)), explains)
        with ThreadPoolExecutor() as pool:
            answers = [*pool.map(lambda client: _answer(client.with_key(key), request), self.clients)]
        shown, titles, true = [], {}, target and target["item_id"]
        for answer, why in zip(answers, explains):
            if isinstance(answer, str):
                shown += [answer, NO_TREE, WHY if why else NO_WORDS]
                continue
            others = [one["items"] for one in answers if one is not answer and not isinstance(one, str)]
            items, ranks = answer["items"], views.ranks_in(others, int(k))
            titles |= {item["item_id"]: item["title"] for item in items}
            listed = views.recommendations(items, int(k), true, why, ranks)
            above = views.outcome(answer, int(k), target, ranks if others else None)
            shown += [above + listed, draw(items, true) or NO_TREE, WHY if why else NO_WORDS]
        return *shown, titles

    def why(self, number: int):
        """A function that explains an item in the words of the model of a server."""

        def explain(history: list[dict], titles: dict, key: str, event: gr.EventData) -> str:
            try:
                words = self.clients[number].with_key(key).explain([item["item_id"] for item in history], event.item)
            except ServerError as error:
                return views.notice(str(error), "warning")
            if not views.TOKEN.sub("", words).strip():  # nothing, or Semantic IDs alone
                return views.notice("This model has no words for it: it has not learned the task explain.", "warning")
            return views.explanation(titles.get(event.item) or event.item, words)

        return explain

    @staticmethod
    def _same(listed: str, explains: Sequence[bool]):
        """What `recommend` returns where nothing was asked: the same words for every server."""
        return *(part for why in explains for part in (listed, NO_TREE, WHY if why else NO_WORDS)), {}

    @staticmethod
    def _chosen(history: list[dict]):
        return history, views.history(history), None


class _Server:
    """What a server says of itself: its `name`, its `catalogue`, whether it `explains`; `error` is a notice."""

    def __init__(self, client: Client):
        self.name, self.catalogue, self.explains, self.error = client.url, {}, False, ""
        try:
            self.catalogue = client.catalogue()
            self.name, self.explains = ", ".join(client.models()), client.can_explain()
        except ServerError as error:
            self.error = views.notice(str(error), "error")


def _answer(client: Client, request: dict) -> dict | str:
    """What the server answers, or a notice that says why it does not."""
    try:
        return client.recommend(request)
    except ServerError as error:
        unknown = error.status == 400 and "task" in request
        hint = " Perhaps this model has not learned this question." if unknown else ""
        return views.notice(f"{error}{hint}", "warning" if error.status in (400, 429) else "error")
