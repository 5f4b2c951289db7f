"""What a reader of the built site meets: tables, formulas, headings, no requests."""

import importlib.util
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import elk_ssm as elk

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text()


def load(name):
    """Import one of the hooks of the site, which are no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


measured, headings, figures = load("measured"), load("api_headings"), load("figures")
mathml = load("mathml")
NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?[%*]*"
# Three numbers with nothing but punctuation between them.
BARE = re.compile(rf"(?<![\w.]){NUMBER}(?:[\s;/()±]+|, +){NUMBER}(?:[\s;/()±]+|, +)\d")


def cells(text):
    """Cells of the tables of a page, in the order of the page."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield from (cell.strip() for cell in line.strip("|").split(" | "))


@pytest.mark.parametrize(
    ("cell", "bare"),
    [
        ("9, 0.072, 2e-16", True),
        ("27; 0.22; 0.015; 220", True),
        ("-0.190 (-0.498, 0.117)", True),
        ("1,000,000", False),
        ("5 % missing, D = 32, T = 10,000", False),
        ("2.02 (56.0)", False),
    ],
)
def test_bare_numbers_are_told_from_others(cell, bare):
    assert bool(BARE.search(cell)) == bare


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda p: p.stem
)
def test_no_cell_holds_three_unlabelled_numbers(path):
    for cell in cells(measured.on_page_markdown(path.read_text())):
        assert not BARE.search(cell), cell


@pytest.mark.parametrize("page", measured.PAGES)
def test_every_column_of_a_measured_table_has_a_name(page):
    lines = measured.on_page_markdown((DOCS / f"{page}.md").read_text()).splitlines()
    for head, rule in itertools.pairwise(lines):
        if rule.startswith("|---"):
            names = [name.strip() for name in head.strip("|").split("|")]
            assert all(names), head
            assert not {"run_ms", "compile_s", "temp_mb"} & set(names)


@pytest.mark.parametrize("page", [*figures.FIGURES, "speed", "which_algorithm"])
def test_a_picture_comes_before_the_tables(page):
    text = measured.on_page_markdown((DOCS / f"{page}.md").read_text())
    before, picture, after = text.partition("](figures/")
    assert picture
    assert "|---|" not in before
    assert "|---|" in after


@pytest.mark.parametrize("page", figures.FIGURES)
def test_a_picture_is_drawn_from_the_results(page):
    picture = figures.picture(page)
    assert picture == figures.picture(page)
    assert picture.count("<path") > 5
    assert f"figures/{page}.svg" in (DOCS / f"{page}.md").read_text()


def test_an_entry_of_the_reference_is_headed_as_it_is_typed():
    assert headings.typed("evaluation.evaluate") == "elk.evaluate"
    assert headings.typed("forcing.Forced.inputs") == "elk.Forced.inputs"
    assert headings.typed("plotting.gate") == "elk.plotting.gate"
    entries = [
        path
        for page in (DOCS / "api").glob("*.md")
        for path in re.findall(r"^::: elk_ssm\.(\S+)$", page.read_text(), re.M)
    ]
    assert len(entries) > 80
    for path in entries:
        if not path.startswith("interop.cells.layers"):
            value = elk
            for part in headings.typed(path).split(".")[1:]:
                value = getattr(value, part)


def test_formulas_of_headings_are_drawn_in_the_table_of_contents():
    child = SimpleNamespace(title=r"Is it \(\lambda\)?", children=[])
    page = SimpleNamespace(toc=[SimpleNamespace(title="Plain", children=[child])])
    mathml.on_page_content("", page=page)
    assert "<math" in child.title
    assert "\\" not in child.title
    assert page.toc[0].title == "Plain"


def test_formulas_are_spaced_as_mathematics():
    def drawn(formula):
        marked = rf'<span class="arithmatex">\({formula}\)</span>'
        return mathml.on_page_content(marked)

    assert "<mo>&#x0223C;</mo>" in drawn(r"x \sim N(0, 1)")
    assert '<mi>log</mi><mspace width="0.17em" />' in drawn(r"\log p")
    assert "mspace" not in drawn(r"\log(p)")
    assert "<mi>&#x022A4;</mi>" in drawn(r"A^\top")


def test_the_site_asks_no_network():
    assert "font: false" in CONFIG
    assert "- offline" in CONFIG
    shim = re.search(r"polyfills: \[(\S*iframe-worker\S*)\]", CONFIG)
    assert (DOCS / shim[1]).exists()  # else the plugin would fetch it
    for path in [*DOCS.rglob("*.css"), *DOCS.rglob("*.js")]:
        assert not re.search(r"https?://|url\(", path.read_text()), path


def test_a_link_to_a_notebook_leads_to_its_page():
    link = "[N](../notebooks/train_rnn.ipynb), [C](choosing.md)"
    expected = "[N](notebooks/train_rnn.md), [C](choosing.md)"
    assert load("notebook_pages").on_page_markdown(link) == expected
