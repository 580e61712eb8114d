"""What the parts of the page do: each method takes values of the page and returns new ones."""

import gradio as gr

from llmrec.serving.demo import views
from llmrec.serving.demo.client import Client, ServerError
from llmrec.serving.demo.questions import QUESTIONS, body, typed
from llmrec.serving.demo.tree_view import draw
from llmrec.serving.demo.users import Users

MOST_ITEMS = 50
PLAIN = ("item_id", "title", "description", "source_id")  # seldom what a condition is about
LISTS = ("list", "large_list", "fixed_size_list", "struct")  # columns that no condition fits
NOT_SEARCHED = views.empty("Nothing searched yet", "What you find is listed here, to be added.")
FIRST = views.empty("Nothing asked yet", "Build a history on the left, then press Recommend.")
NO_TREE = views.empty("No tree yet", "It lights up here, level by level, with the recommendations.")
WHY = views.quiet("Press Why? beside a recommended item.")
NO_WORDS = views.quiet("This server writes no explanations: they need its mode generate.")


class Actions:
    """Bound to one server; who calls it is in the arguments, so that people do not share anything."""

    def __init__(self, client: Client, users: Users | None):
        self.client, self.users = client, users

    def connect(self, key: str):
        """header, list, why, columns, whether it explains, choices of a condition's column, of a limit's column."""
        client = self.client.with_key(key)
        no_limit = ("no limit", "")
        try:
            catalogue = client.catalogue()
            model, explains = ", ".join(client.models()), client.can_explain()
        except ServerError as error:
            offline = views.header(self.client.url, alive=False), views.notice(str(error), "error"), WHY, {}, False
            return *offline, gr.update(choices=[], value=None), gr.update(choices=[no_limit], value="")
        columns = {name: kind for name, kind in catalogue["columns"].items() if not kind.startswith(LISTS)}
        names = sorted(columns, key=lambda name: name in PLAIN)
        return (
            views.header(model, catalogue["items"], catalogue["version"]),
            FIRST,
            WHY if explains else NO_WORDS,
            columns,
            explains,
            gr.update(choices=names, value=next(iter(names), None)),
            gr.update(choices=[no_limit, *((name, name) for name in names)], value=""),
        )

    def search(self, query: str, key: str) -> str:
        if not query.strip():
            return NOT_SEARCHED
        try:
            return views.found(self.client.with_key(key).search(query.strip()), query.strip())
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
            return *self._chosen([]), FIRST, NO_TREE, WHY, {}
        row, key = self.users.rows[number], request[-2]
        kinds = row.get("behaviours") or [None] * len(row["history"])
        try:
            items = self.client.with_key(key).items([*row["history"], row["target"]])
        except ServerError as error:
            return *self._chosen([]), views.notice(str(error), "error"), NO_TREE, WHY, {}
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
        """list, tree, why, and the titles of what was recommended by item id."""
        at_most = {group: int(most or 1)} if group else None
        why = WHY if explains else NO_WORDS
        try:
            request = body(history, question, text, int(k), beams or None, seen, where, at_most)
            answer = self.client.with_key(key).recommend(request)
        except ValueError as error:
            return views.notice(str(error)), NO_TREE, why, {}
        except ServerError as error:
            unknown = error.status == 400 and "task" in request
            hint = " Perhaps this model has not learned this question." if unknown else ""
            kind = "warning" if error.status in (400, 429) else "error"
            return views.notice(f"{error}{hint}", kind), NO_TREE, why, {}
        items, true = answer["items"], target and target["item_id"]
        above = views.outcome(answer, int(k), target)
        return (
            above + views.recommendations(items, int(k), true, explains),
            draw(items, true) or NO_TREE,
            why,
            {item["item_id"]: item["title"] for item in items},
        )

    def why(self, history: list[dict], titles: dict, key: str, event: gr.EventData) -> str:
        try:
            words = self.client.with_key(key).explain([item["item_id"] for item in history], event.item)
        except ServerError as error:
            return views.notice(str(error), "warning")
        if not views.TOKEN.sub("", words).strip():  # nothing, or Semantic IDs alone
            return views.notice("This model has no words for it: it has not learned the task explain.", "warning")
        return views.explanation(titles.get(event.item) or event.item, words)

    @staticmethod
    def _chosen(history: list[dict]):
        return history, views.history(history), None
