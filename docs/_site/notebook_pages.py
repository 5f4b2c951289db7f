"""Turn the executed notebooks of `notebooks/` into pages of the site.

Markdown cells are taken as they are, code cells are fenced, printed text follows in a
block of its own, and pictures become files beside the page, as does the notebook
itself, to be downloaded. A link to `../notebooks/name.ipynb` works on a forge, and
leads to the page here.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File


def on_files(files: Any, config: Any) -> Any:
    """Add a page and its pictures for every executed notebook."""
    for path in sorted((Path(config.docs_dir).parent / "notebooks").glob("*.ipynb")):
        text, pictures = page(json.loads(path.read_text()), path.stem)
        made = {f"notebooks/{path.stem}.md": text, **pictures}
        made[f"notebooks/{path.name}"] = path.read_text()
        for uri, content in made.items():
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to notebooks lead to their pages."""
    return re.sub(r"\]\(\.\./(notebooks/\w+)\.ipynb\)", r"](\1.md)", markdown)


def page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Return the markdown of a notebook, and its pictures by place in the site."""
    parts = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        if cell["cell_type"] != "code" or not source.strip():
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            parts.append(_output(output, name, pictures))
    source = f"Its source is `notebooks/{name}.py`."
    parts.append(f"*[Download this notebook]({name}.ipynb). {source}*")
    return "\n\n".join(part for part in parts if part), pictures


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{name}_{len(pictures)}.png"
        pictures[f"notebooks/{file}"] = base64.b64decode(data["image/png"])
        return f"![Figure {len(pictures)} of this notebook]({file})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
