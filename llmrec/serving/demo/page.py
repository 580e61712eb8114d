"""The Gradio page: parts, what they do when touched, and how they look."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gradio as gr
from starlette.middleware import Middleware

from llmrec.serving.demo import actions, address, views
from llmrec.serving.demo.client import Client
from llmrec.serving.demo.headers import SecurityHeaders
from llmrec.serving.demo.questions import BEAMS, MOST_ITEMS, OPERATORS, QUESTIONS, Question
from llmrec.serving.demo.users import Users

# A click on anything with `data-action` reaches Python with all its `data-` attributes.
TELL = """element.addEventListener("click", event => {
  const button = event.target.closest("[data-action]");
  if (button) trigger("click", {...button.dataset});
});"""
HEADER = """element.addEventListener("click", event => {
  if (event.target.closest("[data-action=theme]")) document.body.classList.toggle("dark");
});"""
REPLAY = """() => document.querySelectorAll("svg.tree").forEach(tree => tree.replaceWith(tree.cloneNode(true)))"""
ADDRESS_FIRST = "(query, ...others) => [window.location.search, ...others]"
KEEP = "query => window.history.replaceState(null, '', query || window.location.pathname)"
# On a phone the lists stand below the form.
SHOW = """() => {
  if (matchMedia("(max-width: 720px)").matches) document.querySelector("#listed").scrollIntoView({behavior: "smooth"});
}"""
BARE = {"apply_default_css": False}


def look() -> dict:
    """Arguments of `launch` for theme, style and headers; nothing is loaded from other hosts."""
    fonts = ["Inter", "ui-sans-serif", "system-ui", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
        radius_size="lg",
    )
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    secure = {"middleware": [Middleware(SecurityHeaders)]}
    return {"theme": theme, "css": style, "footer_links": [], "ssr_mode": False, "app_kwargs": secure}


class Panel(NamedTuple):
    """What is shown of one server."""

    name: gr.HTML
    listed: gr.HTML
    why: gr.HTML
    tree: gr.HTML


def panel(suffix: str) -> Panel:
    with gr.Column(min_width=320):
        name = gr.HTML("<h2>Recommendations</h2>", **BARE)
        listed = gr.HTML(actions.FIRST, js_on_load=TELL, elem_id=f"listed{suffix}", **BARE)
        gr.HTML("<h2>Why?</h2>", **BARE)
        why = gr.HTML(actions.WHY, elem_id=f"why{suffix}", **BARE)
        with gr.Row(elem_classes="heading"):
            gr.HTML("<h2>Semantic ID tree</h2>", **BARE)
            replay = gr.Button("Replay", size="sm", scale=0, min_width=80, elem_classes="ghost")
        tree = gr.HTML(actions.NO_TREE, elem_id=f"tree{suffix}", **BARE)
    replay.click(None, js=REPLAY)
    return Panel(name, listed, why, tree)


def page(clients: Sequence[Client], users: Users | None = None) -> gr.Blocks:
    """The page for one server, or for several whose lists stand side by side, and for the users of a prepared data
    folder where there is one."""
    acts = actions.Actions(clients, users)
    with gr.Blocks(title="llmrec demo", analytics_enabled=False, fill_width=True) as blocks:
        columns, explains, answer = gr.State({}), gr.State([False] * len(clients)), gr.State({})
        history, where, target = gr.State([]), gr.State([]), gr.State(None)
        query = gr.Textbox(visible="hidden")  # of the page's address
        header = gr.HTML(views.header(clients[0].url, alive=False), js_on_load=HEADER, elem_id="header", **BARE)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=4, min_width=320, elem_classes="side"):
                gr.HTML("<h2>History</h2>", **BARE)
                if users:
                    with gr.Row(elem_classes="ends"):
                        user = gr.Dropdown(users.names, value=None, label="User of the data", scale=3, elem_id="user")
                        any_user = gr.Button(
                            "Any user", size="sm", scale=0, min_width=84, elem_classes="ghost", elem_id="any-user"
                        )
                search = gr.Textbox(label="Search the catalogue", placeholder="words of a title", elem_id="search")
                found = gr.HTML(actions.NOT_SEARCHED, js_on_load=TELL, elem_id="found", **BARE)
                chosen = gr.HTML(views.history([]), js_on_load=TELL, elem_id="history", **BARE)
                clear = gr.Button("Clear history", size="sm", elem_classes="ghost")
                gr.HTML("<h2>Question</h2>", **BARE)
                question = gr.Dropdown(list(QUESTIONS), label="Ask", elem_id="question")
                text = gr.Textbox(label=Question().label, interactive=False, elem_id="text")
                with gr.Row():
                    k = gr.Slider(1, MOST_ITEMS, 10, step=1, label="Items", min_width=140)
                    beams = gr.Dropdown(BEAMS, value=0, label="Beams", min_width=140)
                with gr.Accordion("Filters", open=False, elem_id="filters"):
                    seen = gr.Checkbox(label="Leave out the items of the history")
                    with gr.Row(equal_height=True):
                        column = gr.Dropdown([], label="Column", min_width=90, elem_id="column")
                        operator = gr.Dropdown(OPERATORS, label="is", min_width=70, elem_id="operator")
                        value = gr.Textbox(label="Value", min_width=90, elem_id="value")
                    add = gr.Button("Add condition", size="sm", elem_classes="ghost", elem_id="add-condition")
                    chips = gr.HTML(views.conditions([]), js_on_load=TELL, elem_id="conditions", **BARE)
                    with gr.Row():
                        most = gr.Number(2, label="At most", minimum=1, precision=0, min_width=90)
                        group = gr.Dropdown(
                            [("no limit", "")], value="", label="of each", min_width=120, elem_id="group"
                        )
                with gr.Accordion("Access", open=False):
                    key = gr.Textbox(label="API key", type="password", placeholder="where the server wants one")
                    again = gr.Button("Reconnect", size="sm", elem_classes="ghost")
                go = gr.Button("Recommend", variant="primary", elem_id="recommend")
            beside = "main beside" if len(clients) > 1 else "main"
            with gr.Column(scale=8, min_width=340, elem_classes=beside), gr.Row():
                panels = [panel(f"-{number}" if number else "") for number in range(len(clients))]

        named = [part for one in panels for part in (one.name, one.listed, one.why)]
        connected = [header, *named, columns, explains, column, group]
        result = [*(part for one in panels for part in (one.listed, one.tree, one.why)), answer]
        form = [question, text, k, beams, seen, where, most, group]
        request = [history, target, *form, key, explains]
        loading = {"show_progress_on": [one.listed for one in panels]}
        hidden = {"show_progress": "hidden"}
        gr.on([again.click, key.submit], acts.connect, [key], connected, **hidden)
        restored = [history, chosen, target, question, text, k, beams, seen, where, chips, most, group, *result]
        blocks.load(acts.connect, [key], connected, **hidden).success(
            acts.restore, [query, columns, explains, key], restored, js=ADDRESS_FIRST, **hidden
        )
        kept = [history, target, *form]
        gr.on([part.change for part in kept], address.write, kept, query, trigger_mode="always_last", **hidden)
        query.change(None, query, js=KEEP)
        search.change(acts.search, [search, key], found, trigger_mode="always_last", **hidden)
        found.click(acts.add, [history], [history, chosen, target], **hidden)
        chosen.click(acts.remove, [history], [history, chosen, target], **hidden)
        clear.click(acts.clear, None, [history, chosen, target], **hidden)
        question.input(acts.ask, question, text, **hidden)
        gr.on(
            [add.click, value.submit],
            acts.condition,
            [where, column, operator, value, columns],
            [where, chips, value],
            **hidden,
        )
        chips.click(acts.drop, where, [where, chips], **hidden)
        gr.on([go.click, text.submit], acts.recommend, request, result, **loading).then(None, js=SHOW)
        for number, one in enumerate(panels):
            one.listed.click(acts.why(number), [history, answer, key], one.why, show_progress_on=one.why)
        if users:
            any_user.click(users.any_row, None, user, **hidden)
            user.change(acts.pick, [user, *request[2:]], [history, chosen, target, *result], **loading)
    blocks.queue(default_concurrency_limit=16)
    return blocks
