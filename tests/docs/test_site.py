"""The documentation says what the code has, and quotes what was measured."""

import importlib
import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import pytest

import elk_ssm
from benchmarks import harness
from elk_ssm import plotting
from elk_ssm.interop import cells

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


@pytest.mark.parametrize("module", [elk_ssm, plotting, cells])
def test_every_public_name_has_an_entry_in_the_reference(module):
    described = {x.rsplit(".", 1)[-1] for x in re.findall(r"^::: (\S+)", API, re.M)}
    assert set(module.__all__) - {"plotting"} <= described


def documented():
    """Benchmarks that write a page from stored results, and have some."""
    for source in sorted(harness.RESULTS.parent.glob("*.py")):
        stored = (harness.RESULTS / f"{source.stem}.json").exists()
        if stored and '"--docs"' in source.read_text():
            yield source.stem


@pytest.mark.parametrize("name", list(documented()))
def test_measured_pages_are_those_of_the_results(name, tmp_path, monkeypatch):
    before = jax.config.jax_enable_x64
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(harness, "DOCS", tmp_path)
    if hasattr(module, "DOCS"):
        monkeypatch.setattr(module, "DOCS", tmp_path / f"{name}.md")
    module.main(["--docs"])
    jax.config.update("jax_enable_x64", before)
    written = list(tmp_path.glob("*.md"))
    assert written
    for page in written:
        kept = (DOCS / page.name).read_text()
        assert page.read_text() == kept, f"run: python -m benchmarks.{name} --docs"


def quoted():
    """Names of the numbers that the pages quote."""
    for path in DOCS.rglob("*.md"):
        yield from re.findall(r"\{\{ *(\w+) *\}\}", path.read_text())


def test_numbers_on_pages_come_from_the_results():
    assert set(quoted()) == set(measured.VALUES)
    for value in measured.VALUES.values():
        assert re.search(r"\d", value())


def test_an_unknown_number_is_an_error():
    with pytest.raises(KeyError):
        measured.on_page_markdown("{{ nothing }}")
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
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target
