r"""Write formulas as MathML when the site is built.

Browsers draw MathML themselves, so that neither the build nor a reader needs a network
or a script. `pymdownx.arithmatex` marks formulas as `\(...\)` and `\[...\]`; in the
titles of a table of contents only the marks are left.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">'
    r"\\(?P<open>[(\[])(?P<body>.*?)\\[)\]]</(?P=tag)>",
    re.DOTALL,
)
_IN_TITLE = re.compile(r"\\(?P<open>\()(?P<body>.*?)\\\)")
# The converter writes "is distributed as" as an ASCII tilde, which has no space around.
_TILDE, _SIMILAR = "<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"


def on_page_content(content: str, page: Any = None, **_: Any) -> str:
    """Replace every marked formula of a page, and of its table of contents."""
    for entry in page.toc if page else ():
        _entitle(entry)
    return _MARKED.sub(_formula, content)


def _entitle(entry: Any) -> None:
    entry.title = _IN_TITLE.sub(_formula, entry.title)
    for child in entry.children:
        _entitle(child)


def _formula(found: re.Match) -> str:
    display = "block" if found["open"] == "[" else "inline"
    formula = convert(html.unescape(found["body"]).strip(), display=display)
    return formula.replace(_TILDE, _SIMILAR)
