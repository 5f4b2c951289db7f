"""Turn the executed notebooks of `notebooks/` into pages of the site.

Markdown cells are taken as they are, code cells are fenced, printed text follows in a
block of its own, and pictures become files beside the page.
"""

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File


def on_files(files: Any, config: Any) -> Any:
    """Add a page and its pictures for every executed notebook."""
    for path in sorted((Path(config.docs_dir).parent / "notebooks").glob("*.ipynb")):
        text, pictures = page(json.loads(path.read_text()), path.stem)
        for uri, content in {f"notebooks/{path.stem}.md": text, **pictures}.items():
            files.append(File.generated(config, uri, content=content))
    return files


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
    parts.append(f"*Source: `notebooks/{name}.py`; run it with `make notebooks`.*")
    return "\n\n".join(part for part in parts if part), pictures


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{name}_{len(pictures)}.png"
        pictures[f"notebooks/{file}"] = base64.b64decode(data["image/png"])
        return f"![Figure {len(pictures)} of this notebook]({file})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
