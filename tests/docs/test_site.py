"""The documentation says what the code has, and quotes what was measured."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import elk_ssm
from benchmarks import harness
from elk_ssm import models, plotting
from elk_ssm.interop import arviz, blackjax, cells

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
API = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))


def load(name):
    """Import one of the hooks of the site, which are no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


measured, mathml, pages = load("measured"), load("mathml"), load("notebook_pages")
figures = load("figures")


@pytest.mark.parametrize("module", [elk_ssm, models, plotting, cells, blackjax, arviz])
def test_every_public_name_has_an_entry_in_the_reference(module):
    described = {x.rsplit(".", 1)[-1] for x in re.findall(r"^::: (\S+)", API, re.M)}
    assert set(module.__all__) - {"plotting", "models"} <= described


def quoted():
    """Names of the places of the pages."""
    for path in DOCS.rglob("*.md"):
        yield from re.findall(r"\{\{(.*?)\}\}", path.read_text(), re.S)


def known():
    """Names of all that can fill one."""
    places = (
        f"{page}.{name}" for page in measured.PAGES for name in measured.places(page)
    )
    return {*measured.VALUES, *places}


def test_every_place_is_known_and_every_known_place_is_used():
    assert {name.strip() for name in quoted()} == known()


def test_what_fills_a_place_has_been_measured():
    words = {"speed.gpu"}  # says that nothing was, until it is
    for name in known() - words:
        assert re.search(r"\d", measured.value(name)), name


@pytest.mark.parametrize("page", measured.PAGES)
def test_a_measured_page_is_filled_from_its_own_results(page):
    text = (DOCS / f"{page}.md").read_text()
    assert f"benchmarks/results/{measured.stored_as(page)}.json" in text
    assert f"{{{{ {page}.machine }}}}" in text
    assert not re.search(r"^\|", text, re.M), "a table that no benchmark gives"
    filled = measured.on_page_markdown(text)
    assert "{{" not in filled
    assert filled.count("|---|") > 0


@pytest.mark.parametrize("page", measured.PAGES)
def test_a_new_measurement_needs_no_new_page(page, monkeypatch):
    def shifted(value):
        if isinstance(value, dict):
            return {key: shifted(each) for key, each in value.items()}
        if isinstance(value, list):
            return [shifted(each) for each in value]
        return 0.5 * value if isinstance(value, float) else value

    before = measured.places(page)
    read = harness.read
    monkeypatch.setattr(harness, "read", lambda name: shifted(read(name)))
    after = measured.places.__wrapped__(page)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert "machine" in changed
    assert any("|---|" in after[name] for name in changed)


def test_an_unknown_place_is_an_error():
    for place in ("nothing", "sharding.nothing", "nothing.passes"):
        with pytest.raises(KeyError):
            measured.on_page_markdown(f"{{{{ {place} }}}}")
    page = measured.on_page_markdown("median {{ cost_median }}.")
    assert re.fullmatch(r"median \d+\.\d\d\.", page)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda p: p.stem)
def test_formulas_become_valid_mathml(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.S)
    displayed = re.findall(r"\$\$(.*?)\$\$", text, re.S)
    inline = re.findall(r"\$([^$\n]+)\$", re.sub(r"\$\$.*?\$\$", "", text, flags=re.S))
    for formula in [*displayed, *inline]:
        marked = rf'<span class="arithmatex">\({formula}\)</span>'
        found = mathml.on_page_content(marked)
        assert ET.fromstring(found).tag.endswith("math"), formula
        # A command that the converter does not know is passed through.
        assert "\\" not in found, formula


def test_a_notebook_becomes_a_page():
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {
            "cell_type": "code",
            "source": ["1 + 1"],
            "outputs": [
                {"text": ["printed\n"]},
                {"data": {"image/png": "iVBORw==", "text/plain": ["<Figure>"]}},
            ],
        },
    ]
    text, pictures = pages.page({"cells": cells}, "n")
    assert text.startswith("# Title\n\n```python\n1 + 1\n```\n\n```text\nprinted\n```")
    assert "](n_0.png)" in text
    assert pictures == {"notebooks/n_0.png": b"\x89PNG"}
    assert "<Figure>" not in text


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=str
)
def test_links_to_files_of_the_repository_exist(path):
    """MkDocs checks those within the site; GitHub shows the same pages without it."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
        drawn = target in {f"figures/{page}.svg" for page in figures.FIGURES}
        if not drawn and not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target
