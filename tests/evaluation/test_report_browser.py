"""The report as a browser lays it out: nothing scrolls sideways on a laptop's screen."""

import shutil

import pytest
from tiny import tiny_data

from llmrec.evaluation import evaluate
from llmrec.evaluation.report import write_report
from llmrec.recommenders.popularity import Popularity

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium", allow_module_level=True)
pytestmark = pytest.mark.browser


def test_ten_recommenders_fit_into_1200_pixels(tmp_path):
    data = tiny_data()
    names = [f"a recommender, number {number}" for number in range(10)]
    results = [evaluate(Popularity.fit(data), data.test, data, name, bootstrap=20) for name in names]
    write_report(results, tmp_path, "Ten", reference=names[0], facts={"folders": {"data": "out/" * 100}}, bootstrap=20)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.goto((tmp_path / "report.html").as_uri())
        widths = "of => of.map(one => [one.scrollWidth, one.clientWidth])"
        parts = tab.locator("html, .wide").evaluate_all(widths)
        browser.close()
    assert len(parts) > 5 and all(inner <= outer for inner, outer in parts)
