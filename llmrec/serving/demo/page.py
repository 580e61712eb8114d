"""The Gradio page: parts, what they do when touched, and how they look."""

from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from llmrec.serving.demo import actions, views
from llmrec.serving.demo.client import Client
from llmrec.serving.demo.headers import SecurityHeaders
from llmrec.serving.demo.questions import OPERATORS, QUESTIONS, Question
from llmrec.serving.demo.users import Users

BEAMS = [("model's own", 0), *((str(beams), beams) for beams in (50, 100, 200, 512))]
# A click on anything with `data-action` reaches Python with all its `data-` attributes.
TELL = """element.addEventListener("click", event => {
  const button = event.target.closest("[data-action]");
  if (button) trigger("click", {...button.dataset});
});"""
HEADER = """element.addEventListener("click", event => {
  if (event.target.closest("[data-action=theme]")) document.body.classList.toggle("dark");
});"""
REPLAY = """() => {
  const tree = document.querySelector("svg.tree");
  if (tree) tree.replaceWith(tree.cloneNode(true));
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


def page(client: Client, users: Users | None = None) -> gr.Blocks:
    """The page for one server, and for the users of a prepared data folder where there is one."""
    acts = actions.Actions(client, users)
    with gr.Blocks(title="llmrec demo", analytics_enabled=False, fill_width=True) as blocks:
        columns, explains, answer = gr.State({}), gr.State(False), gr.State({})
        history, where, target = gr.State([]), gr.State([]), gr.State(None)
        header = gr.HTML(views.header(client.url, alive=False), js_on_load=HEADER, elem_id="header", **BARE)
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
                    k = gr.Slider(1, actions.MOST_ITEMS, 10, step=1, label="Items", min_width=140)
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
            with gr.Column(scale=8, min_width=340, elem_classes="main"):
                gr.HTML("<h2>Recommendations</h2>", **BARE)
                listed = gr.HTML(actions.FIRST, js_on_load=TELL, elem_id="listed", **BARE)
                gr.HTML("<h2>Why?</h2>", **BARE)
                why = gr.HTML(actions.WHY, elem_id="why", **BARE)
                with gr.Row(elem_classes="heading"):
                    gr.HTML("<h2>Semantic ID tree</h2>", **BARE)
                    replay = gr.Button("Replay", size="sm", scale=0, min_width=80, elem_classes="ghost")
                tree = gr.HTML(actions.NO_TREE, elem_id="tree", **BARE)

        connected = [header, listed, why, columns, explains, column, group]
        request = [history, target, question, text, k, beams, seen, where, most, group, key, explains]
        result = [listed, tree, why, answer]
        hidden = {"show_progress": "hidden"}
        gr.on([blocks.load, again.click, key.submit], acts.connect, [key], connected, **hidden)
        search.change(acts.search, [search, key], found, trigger_mode="always_last", **hidden)
        found.click(acts.add, [history], [history, chosen, target], **hidden)
        chosen.click(acts.remove, [history], [history, chosen, target], **hidden)
        clear.click(acts.clear, None, [history, chosen, target], **hidden)
        question.change(acts.ask, question, text, **hidden)
        gr.on(
            [add.click, value.submit],
            acts.condition,
            [where, column, operator, value, columns],
            [where, chips, value],
            **hidden,
        )
        chips.click(acts.drop, where, [where, chips], **hidden)
        gr.on([go.click, text.submit], acts.recommend, request, result, show_progress_on=listed)
        listed.click(acts.why, [history, answer, key], why, show_progress_on=why)
        replay.click(None, js=REPLAY)
        if users:
            any_user.click(users.any_row, None, user, **hidden)
            user.change(acts.pick, [user, *request[2:]], [history, chosen, target, *result], show_progress_on=listed)
    blocks.queue(default_concurrency_limit=16)
    return blocks
