"""Leave pages out of the navigation that this checkout does not have.

A notebook has a page once its executed `.ipynb` is there. Only those; any other missing
page is an error of the strict build.
"""

from pathlib import Path
from typing import Any

OPTIONAL = ("notebooks/",)


def on_config(config: Any) -> Any:
    """Filter the navigation before MkDocs reads it."""
    config.nav = _present(config.nav, Path(config.docs_dir))
    return config


def _present(nav: list, docs: Path) -> list:
    kept = []
    for entry in nav:
        if isinstance(entry, str):
            kept.append(entry)
            continue
        ((title, target),) = entry.items()
        if isinstance(target, list):
            if inner := _present(target, docs):
                kept.append({title: inner})
        elif not target.startswith(OPTIONAL) or _source(docs, target).exists():
            kept.append(entry)
    return kept


def _source(docs: Path, target: str) -> Path:
    if target.startswith("notebooks/"):
        return (docs.parent / target).with_suffix(".ipynb")
    return docs / target
