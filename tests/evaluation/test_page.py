"""The report's page in a browser: on a laptop, and printed."""

import json
import subprocess

import numpy as np
import pytest
from chromium import chromium, pdf_pages
from debian import Unavailable
from report_run import FILMS, GENERATORS, SIZE, make_run, plant_copies

from hpc_hipgen.comparisons.downstream_utility import ARMS, Utility
from hpc_hipgen.evaluation import report
from hpc_hipgen.radiograph.layouts import Films
from jobs import evaluate
from jobs import report as report_job

WIDTHS = (1280, 1024)
SECTIONS = (
    "chain", "table1", "comparison", "dots", "bands", "agreement", "samples", "films", "frechet",
    "memorisation", "utility", "losses", "run", "reading",
)  # fmt: skip

BROKEN_IMAGES = """[...document.images].filter(image => !image.complete || !image.naturalWidth
    || image.getBoundingClientRect().width < 20).map(image => image.alt)"""
HIDDEN = """[...document.querySelectorAll('h2')].filter(
    head => !head.checkVisibility() || !head.nextElementSibling.getBoundingClientRect().height
).map(head => head.id)"""
TOO_WIDE = """[...document.querySelectorAll('main, main *')].filter(element =>
    !element.closest('pre') && element.getBoundingClientRect().right > innerWidth + 1
).map(element => element.tagName + ' ' + element.textContent.slice(0, 40))"""
SCROLLED = """[...document.querySelectorAll('.scroll')].filter(
    box => box.scrollWidth > box.clientWidth + 1).map(box => box.textContent.slice(0, 40))"""
UNDER_THE_WRONG_HIP = """[...document.querySelectorAll('.films .under')].filter(under => {
    [...under.querySelectorAll('span span')].forEach(error => {
        error.parentElement.firstChild.data = '102.5 '; error.textContent = '+10.5' })
    const box = under.getBoundingClientRect(), [right, left] = under.children
    const [one, other] = [right, left].map(number => number.getBoundingClientRect())
    return one.left > box.left + 3 || other.right < box.right - 3 || one.right > other.left
}).map(under => under.textContent)"""
MARK_TABLES = """[...document.querySelectorAll('.scroll')].forEach((box, number) => {
    for (const [end, row] of [['A', 'tr:first-child'], ['Z', 'tbody:last-of-type tr:last-child']])
        box.querySelector(row).firstElementChild.append(` T${number}${end}`) })"""


@pytest.fixture
def page(tmp_path, stubs, monkeypatch):
    """The page of a run with every section, copies among its samples and a film without an end."""
    (tmp_path / "films").mkdir()
    more = {"evaluation": {"permutations": 20, "films": str(tmp_path / "films")}}
    run = make_run(tmp_path / "run", **{**GENERATORS, **more})
    plant_copies(run, "llcm_4")
    evaluate.evaluate_items(run, evaluate.items(run))
    for model in run.config.trained():
        run.path(model).mkdir(exist_ok=True)
        lines = [{"images": 16 * i, "loss": 1 / i, "images_per_second": 9.0} for i in range(1, 9)]
        text = "\n".join(json.dumps(line) for line in lines)
        run.path(model, "metrics.jsonl").write_text(text)
        run.mark_done(f"train-{model}", images=128, parameters=1.5e6, seconds=61.2)
    plan_utility(run)
    marks = np.tile(np.array([[4, 8, 2, 3, 6], [12, 8, 2, 13, 6]], float), (FILMS, 1, 1))
    zeros = np.zeros(FILMS)
    names = [f"film-{i:02d}" for i in range(FILMS)]
    views = Films(
        names, np.zeros((FILMS, SIZE, SIZE), np.uint8), marks, names, zeros, zeros, zeros, names
    )
    monkeypatch.setattr(report, "read_manifest", lambda *_, **__: views)
    return report_job.report(run)


def plan_utility(run):
    """What a comparison of rulers with and without generated films leaves."""
    settings = Utility(row="llcm_4")
    settings.save(run, "utility")
    lines = [
        {
            "films": n, "arm": arm, "seeds": 3, "mae": 8 - k - n**0.5 / 3, "low": 3.0, "high": 8.0,
            "bias": 0.5, "refused": k, "difference": -k if k else None,
            "difference_low": -k - 0.4 if k else None, "difference_high": 0.3 if k else None,
        }
        for n in settings.films
        for k, arm in enumerate(ARMS)
    ]  # fmt: skip
    summary = {
        "label": "LLCM, 4 steps", "settings": settings.model_dump(), "lines": lines,
        "test_films": FILMS,
    }  # fmt: skip
    path = Utility.path(run, "utility", "summary.json")
    path.write_text(json.dumps(summary))


@pytest.mark.slow
def test_the_page_in_a_browser_and_printed(page, tmp_path):
    try:
        with chromium(tmp_path / "profile") as tab:
            for width in WIDTHS:
                tab.open(page, width)
                tab.screenshot(tmp_path / f"page-{width}.png")
                ids = tab.evaluate("[...document.querySelectorAll('h2')].map(head => head.id)")
                assert tuple(ids) == SECTIONS
                for problem in (HIDDEN, BROKEN_IMAGES, TOO_WIDE, SCROLLED, UNDER_THE_WRONG_HIP):
                    assert tab.evaluate(problem) == [], f"{width} pixels: {problem}"
                overflow = "document.documentElement.scrollWidth - innerWidth"
                assert tab.evaluate(overflow) <= 0, f"{width} pixels"
            tab.evaluate(MARK_TABLES)
            tables = tab.evaluate("document.querySelectorAll('.scroll').length")
            tab.pdf(tmp_path / "page.pdf")
            outside = [u for u in tab.requested if not u.startswith(("file:", "data:", "about:"))]
            assert not outside, "the page needs no network"
    except Unavailable as error:
        pytest.skip(f"no Chromium here: {error}")
    pages = pdf_pages(tmp_path / "page.pdf")
    assert tables and pages
    assert not any(page.isspace() for page in pages), "an empty page"
    for number in range(tables):
        first, last = (
            [i for i, text in enumerate(pages) if f"T{number}{end}" in text] for end in "AZ"
        )
        assert first and first == last, f"table {number} of the page is cut"
    assert words_outside(tmp_path / "page.pdf") == []


def words_outside(pdf):
    """Words of a PDF that lie beyond the edges of its pages."""
    import re

    done = subprocess.run(["pdftotext", "-bbox", pdf, "-"], capture_output=True, check=True)
    outside, width = [], 0.0
    for line in done.stdout.decode().splitlines():
        values = [float(v) for v in re.findall(r'"([\d.-]+)"', line)]
        if "<page" in line:
            width = values[0]
        elif "<word" in line and not 0 <= values[0] <= values[2] <= width:
            outside.append(line.strip())
    return outside
