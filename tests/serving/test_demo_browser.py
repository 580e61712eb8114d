"""The demo in a real headless browser: Debian's chromium, driven by playwright.

apt-get install -y chromium && pip install gradio playwright
pytest -m browser tests/serving/test_demo_browser.py
"""

import dataclasses
import shutil
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from http_fixtures import listening, tiny_folder
from tiny import tiny_data, tiny_index

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium", allow_module_level=True)
pytestmark = pytest.mark.browser

from llmrec.serving.demo.client import Client  # noqa: E402
from llmrec.serving.demo.page import look, page  # noqa: E402
from llmrec.serving.demo.users import Users  # noqa: E402

EVIL = "green <img src=x onerror=window.hacked=1> ${window.hacked=2} {{value}} `x`</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`(model folder, data folder)`; two titles are hostile."""
    folder, data = tmp_path_factory.mktemp("browser"), tiny_data(num_items=60)
    titles = data.items["title"].to_pylist()
    titles[7] = titles[8] = EVIL
    place = data.items.column_names.index("title")
    data = dataclasses.replace(data, items=data.items.set_column(place, "title", pa.array(titles)))
    for name in ("test", "valid"):
        pq.write_table(getattr(data, name), folder / f"{name}.parquet")
    return tiny_folder(folder, data, tiny_index(data, ragged=False), "next_item"), folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        playwright.expect.set_options(timeout=30_000)
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def start(made, tmp_path_factory):
    """Starts a server with some settings and a page for it: the page's URL."""
    with ExitStack() as stack:

        def started(models: int = 1, **settings):
            log = tmp_path_factory.mktemp("log") / "log"
            _, url = stack.enter_context(listening(made[0], log, **settings))
            blocks = page([Client(url)] * models, Users(made[1]))
            stack.callback(blocks.close)
            return blocks.launch(prevent_thread_lock=True, quiet=True, **look())[1]

        yield started


@pytest.fixture(scope="module")
def url(start):
    return start()


@pytest.fixture(scope="module")
def two(start):
    return start(models=2)


@pytest.fixture
def visit(browser):
    """Opens a page; at the end nothing has gone wrong in it or was fetched from elsewhere."""
    wrong: list[str] = []
    with ExitStack() as stack:

        def visited(url: str, width: int = 1280):
            here = url.partition("?")[0]

            def sent(request):
                if not request.url.startswith((here, "data:", "blob:")):
                    wrong.append(request.url)

            tab = browser.new_page(viewport={"width": width, "height": 900})
            stack.callback(tab.close)
            tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            tab.on("pageerror", lambda error: wrong.append(str(error)))
            tab.on("request", sent)
            tab.goto(url)
            playwright.expect(tab.locator("#header .dot.up, #listed [role=alert]")).to_be_visible()
            return tab

        yield visited
    assert not wrong


def add(tab, query: str, number: int = 0) -> None:
    before = tab.locator("#history li").count()
    tab.locator("#search textarea, #search input").fill(query)
    tab.locator("#found li", has_text=query.split()[0]).nth(number).locator("button").click()
    playwright.expect(tab.locator("#history li")).to_have_count(before + 1)


def recommend(tab) -> list[str]:
    tab.locator("#listed").evaluate("element => element.querySelectorAll('.outcome').forEach(line => line.remove())")
    tab.locator("#recommend").click()
    playwright.expect(tab.locator("#listed .outcome").first).to_be_visible()
    return tab.locator("#listed .what b").all_inner_texts()


def test_a_history_by_search_recommendations_filters_and_the_tree(visit, url):
    tab = visit(url)
    playwright.expect(tab.locator("#header")).to_contain_text("60 items")
    add(tab, "red gadget", 1)
    add(tab, "blue gadget", 0)
    add(tab, "blue gadget", 2)
    tab.locator("#history li button").nth(1).click()
    playwright.expect(tab.locator("#history li")).to_have_count(2)
    place = "document.querySelector('#tree').getBoundingClientRect().top + scrollY"
    before = tab.evaluate(place)
    titles = recommend(tab)
    assert len(titles) == 10 and tab.evaluate(place) == before  # nothing jumps
    levels = tab.locator("#tree svg g.level")
    playwright.expect(levels).to_have_count(5)  # prompt, three levels, items
    delays = levels.evaluate_all("groups => groups.map(group => parseFloat(getComputedStyle(group).animationDelay))")
    assert delays == sorted(delays) and delays[0] == 0 and len(set(delays)) == 5
    tab.wait_for_timeout(1000 * delays[-1] + 700)
    assert levels.evaluate_all("groups => groups.map(group => getComputedStyle(group).opacity)") == ["1"] * 5
    assert {*tab.locator("#tree .title:not(.folded)").all_inner_texts()} >= {*titles}
    assert tab.locator("#why").inner_text().startswith("This server writes no explanations")
    assert tab.locator("#listed .why").count() == 0

    tab.locator("#filters button").first.click()
    tab.locator("#value textarea, #value input").fill("brand 1")
    tab.locator("#add-condition").click()
    playwright.expect(tab.locator("#conditions li")).to_have_text(["brand == brand 1×"])
    filtered = recommend(tab)
    assert len(filtered) == 10 and filtered != titles
    tab.locator("#conditions li button").click()
    playwright.expect(tab.locator("#conditions li")).to_have_count(0)
    assert recommend(tab) == titles


def test_hostile_titles_are_shown_as_they_are(visit, url):
    tab = visit(url)
    add(tab, "green <img")
    recommend(tab)
    for part in ("#found span", "#history span"):
        assert tab.locator(part).first.inner_text() == EVIL
    assert tab.locator("#columns img").count() == 0 and tab.evaluate("window.hacked") is None


def test_a_user_of_the_data_and_a_wish(visit, url):
    tab = visit(url)
    tab.locator("#any-user").click()
    playwright.expect(tab.locator("#listed .outcome.next")).to_contain_text("Chosen next")
    history = tab.locator("#history li").count()
    assert history in (6, 7)
    tab.locator("#question input").click()
    tab.get_by_role("option", name="Search in words").click()
    playwright.expect(tab.locator("#text")).to_contain_text("Query")
    tab.locator("#recommend").click()
    playwright.expect(tab.locator("#listed .notice")).to_contain_text("Type something")
    tab.locator("#text textarea, #text input").fill("green gadget")
    assert len(recommend(tab)) == 10


def test_a_key_is_asked_for(visit, start):
    tab = visit(start(api_key="secret"))
    playwright.expect(tab.locator("#listed [role=alert]")).to_contain_text("API key")
    tab.get_by_role("button", name="Access").click()
    tab.locator("input[type=password]").fill("secret")
    tab.get_by_role("button", name="Reconnect").click()
    playwright.expect(tab.locator("#header .dot.up")).to_be_visible()
    add(tab, "red gadget")
    assert len(recommend(tab)) == 10


def test_the_address_keeps_the_state(visit, url):
    tab = visit(url)
    tab.locator("#any-user").click()
    playwright.expect(tab.locator("#listed .outcome.next")).to_contain_text("Chosen next")
    tab.locator("#question input").click()
    tab.get_by_role("option", name="Search in words").click()
    tab.locator("#text textarea, #text input").fill("green & <blue> gadget")
    titles = recommend(tab)
    tab.wait_for_url("**?*text=green*")
    other = visit(tab.url)
    playwright.expect(other.locator("#listed .outcome.next")).to_contain_text("Chosen next")
    assert other.locator("#listed .what b").all_inner_texts() == titles
    assert other.locator("#history li").all_inner_texts() == tab.locator("#history li").all_inner_texts()
    assert other.locator("#text textarea, #text input").input_value() == "green & <blue> gadget"
    other.get_by_role("button", name="Clear history").click()
    other.wait_for_url(lambda address: "item=" not in address and "text=green" in address)


def test_two_models_are_side_by_side_and_on_a_phone_below_each_other(visit, two):
    wide, phone = visit(two), visit(two, 390)
    for tab in (wide, phone):
        add(tab, "red gadget")
        assert recommend(tab) == tab.locator("#listed-1 .what b").all_inner_texts()
        playwright.expect(tab.locator("#listed-1 .there")).to_have_count(10)
    left, right = (wide.locator(name).bounding_box() for name in ("#listed", "#listed-1"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    above, below = (phone.locator(name).bounding_box() for name in ("#listed", "#listed-1"))
    assert above["x"] == below["x"] and above["y"] + above["height"] <= below["y"]
    phone.wait_for_function("Math.abs(document.querySelector('#listed').getBoundingClientRect().top) < 100")


@pytest.mark.parametrize("width", [360, 390, 768, 1200, 1920])
@pytest.mark.parametrize("models", [1, 2])
def test_nothing_is_wider_than_the_window(visit, url, two, width, models):
    tab = visit(url if models == 1 else two, width)
    add(tab, "red gadget")
    recommend(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
