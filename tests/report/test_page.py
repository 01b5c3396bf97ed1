"""The page in a real browser: Debian's chromium, driven by Playwright.

    apt-get install chromium

The tests are skipped without it. The checks of accessibility are those of axe-core.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_workdirs as made
import numpy as np
import pytest

from lt_jax import recipes
from lt_jax.report import build

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
)
METHODS = ("los", "ce", "crt")


def workdir(
    folder: Path, methods: Any = METHODS, classes: int = 20, name: str = "class {}"
) -> Path:
    """A sweep with everything that the page can show, and two seeds."""
    rng = np.random.default_rng(0)
    counts = np.geomspace(500, 5, classes).astype(int).tolist()
    names = [name.format(k) for k in range(classes)]

    def outcome(seeds: list[int], accuracy: float) -> dict[str, Any]:
        found = made.outcome(seeds, accuracy, counts, {}, made.analysis())
        found["per_class"]["class"] = names
        found["per_class"]["accuracy"] = rng.uniform(0, 1, classes).round(2).tolist()
        found["analysis"] |= {
            "taken_for": {"class": [1] * classes, "share": [0.25] * classes},
            "mistakes": [],
        }
        return found

    fits = {"none": [outcome([0], 0.4)]}
    rows, lines = [], []
    for i, method in enumerate(methods):
        fits[method] = [outcome([0, s], 0.5 - 0.02 * i + 0.01 * s) for s in range(2)]
        for lr, delta in ((lr, d) for lr in (0.001, 0.01) for d in (0.5, 0.9, 0.98)):
            hyper = {"lr": lr, "delta": delta}
            for s in range(3):
                values = made.summary(rng.uniform(0.3, 0.6), rng.uniform(2, 6))
                rows.append(made.row(method, hyper, [0, s], values, values))
    for run in ("stage1/0", *(f"{m}/0.{s}" for m in methods for s in range(2))):
        for epoch in range(1, 41):
            line = {"run": run, "step": epoch, "epoch": epoch, "loss": 2 / epoch}
            line |= made.summary(0.5 - 0.2 / epoch)
            lines.append(json.dumps(line | {"rate": 0.1 / epoch}))
    made.write(folder, fits, made.config({m: {} for m in methods}), rows)
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = workdir(tmp_path_factory.mktemp("page") / "run")
    return build.write([folder], folder / "report")


@pytest.fixture
def tab(browser: Any, report: Path) -> Iterator[Any]:
    with browser.new_page(viewport={"width": 1400, "height": 900}) as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(request.url))
        page.goto(report.as_uri())
        yield page
        assert not errors


def methods(page: Any) -> list[str]:
    """The rows of the leaderboard that are shown, in their order."""
    rows = page.locator("#leaderboard tbody tr:visible")
    return [row.get_attribute("data-m") for row in rows.all()]


def test_sort_filter_and_tooltip(tab: Any):
    assert methods(tab) == ["los", "ce", "crt", "none"]
    header = tab.locator("#leaderboard th", has_text="few").locator("button")
    header.click()
    header.click()
    assert methods(tab) == ["none", "crt", "ce", "los"]
    assert header.locator("..").get_attribute("aria-sort") == "ascending"
    tab.fill("#filter", "los, crt")
    assert methods(tab) == ["crt", "los"]
    # Series and columns follow the leaderboard.
    assert tab.locator("#per_class .s[data-m='ce']:visible").count() == 0
    assert tab.locator("#classes th:visible", has_text="ce").count() == 0
    assert tab.locator("#classes tbody tr >> nth=0").locator("td:visible").count() == 5
    tab.click("#every")
    tab.locator(".chip[data-method='crt']").click()
    assert methods(tab) == ["none", "ce", "los"]
    tab.fill("#classes input", "class 1")
    assert tab.locator("#classes tbody tr:visible").count() == 11  # and 10 to 19
    chart = tab.locator("#curves_stage1 svg[role=img]").first
    box = chart.bounding_box()
    chart.hover(position={"x": 0.93 * box["width"], "y": 0.79 * box["height"]})
    assert tab.inner_text("#tip").startswith("stage1/0 · epoch: ")
    tab.keyboard.press("Escape")
    chart.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#spoken") == "stage1/0 · epoch: 1; training loss: 2"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_looks(browser: Any, report: Path, scheme: str, width: int, tmp_path: Path):
    """Nothing is cut; the colours follow the system; axe-core finds nothing."""
    size = {"width": width, "height": 900}
    with browser.new_page(viewport=size, color_scheme=scheme) as page:
        page.goto(report.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        (red, *_) = eval(
            page.evaluate("getComputedStyle(document.body).backgroundColor")[3:]
        )
        assert (red < 50) == (scheme == "dark")
        outside = page.evaluate(
            """() => [...document.querySelectorAll('.panel svg text')].filter(text => {
              const a = text.getBoundingClientRect();
              const b = text.closest('.panel > svg').getBoundingClientRect();
              return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2;
            }).map(text => text.textContent)"""
        )
        assert outside == []
        spec = importlib.util.find_spec("axe_playwright_python")
        assert spec
        assert spec.origin
        (script,) = Path(spec.origin).parent.rglob("axe.min.js")
        page.add_script_tag(path=script)
        found = page.evaluate("axe.run()")
        assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []
        assert len(found["passes"]) > 20


@pytest.mark.slow
def test_print_repeats_headers_on_a4_landscape(browser: Any, tmp_path: Path):
    folder = workdir(tmp_path / "run", classes=150)
    page = browser.new_page()
    page.goto(build.write([folder], folder / "report").as_uri())
    page.emulate_media(media="print")
    assert not page.locator("#filter").is_visible()
    shown = page.locator("#about pre").evaluate("e => e.checkVisibility()")
    # A button in it would keep the header from being repeated.
    style = "e => getComputedStyle(e).display"
    assert page.locator("th button").first.evaluate(style) == "contents"
    content = page.pdf(prefer_css_page_size=True)
    page.close()
    assert b"/MediaBox [0 0 841.9" in content
    assert shown


@pytest.mark.slow
def test_without_scripts_the_tables_and_charts_remain(browser: Any, report: Path):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(report.as_uri())
        assert not page.locator("#filter").is_visible()
        assert page.locator("#leaderboard tbody tr").count() == 4
        assert page.locator("#groups svg text", has_text="crt").is_visible()


def test_a_large_sweep_is_small_and_quick(tmp_path: Path):
    """27 methods and 486 heads: at most 20 s and 3 MB."""
    folder = workdir(tmp_path / "run", list(recipes.RECIPES), classes=100)
    began = time.process_time()
    page = build.write([folder], folder / "report")
    assert time.process_time() - began < 20
    assert page.stat().st_size < 3e6


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 10,000 classes with long names."""
    folder, name = tmp_path_factory.mktemp("large"), "<b>class {} " + "x" * 100
    return build.write([workdir(folder, classes=10_000, name=name)], folder / "report")


@pytest.mark.slow
def test_ten_thousand_classes_are_less_than_5_mb(large: Path):
    assert large.stat().st_size < 5e6


@pytest.mark.slow
def test_ten_thousand_classes_are_usable(browser: Any, large: Path):
    with browser.new_page() as page:
        page.goto(large.as_uri())
        began = time.monotonic()
        page.locator("#classes th button", has_text="class").click()
        page.fill("#classes input", "class 77 ")
        assert page.locator("#classes tbody tr:visible").count() == 1
        assert time.monotonic() - began < 30
