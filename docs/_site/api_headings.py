"""Head the entries of the reference with the name that a user types.

A page says where a thing is written (`::: elk_ssm.evaluation.evaluate`); its heading
says `elk.evaluate`.
"""

import re
from typing import Any

import elk_ssm

_ENTRY = re.compile(r"^::: elk_ssm\.(\S+)$", re.MULTILINE)


def typed(path: str) -> str:
    """Name behind `import elk_ssm as elk` of what is written at a path below it."""
    parts = path.split(".")
    if parts[0] not in ("interop", "plotting"):
        first = (i for i, part in enumerate(parts) if part in elk_ssm.__all__)
        parts = parts[next(first, 0) :]
    return ".".join(["elk", *parts])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name every entry of a page."""
    return _ENTRY.sub(_entry, markdown)


def _entry(found: re.Match) -> str:
    name = typed(found[1])
    short = name.removeprefix("elk.interop.")
    return f'{found[0]}\n    options: {{heading: "{name}", toc_label: "{short}"}}'
