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
# What the converter writes and a browser would space wrongly: "is distributed as" as an
# ASCII tilde, infinity and transposition as operators, and functions without a space.
_FUNCTION = r"<mi>(?:log|det)</mi>"
_SPACED = (
    (r"<mi>&#x0007E;</mi>", r"<mo>&#x0223C;</mo>"),
    (r"<mo>(&#x0221E;|&#x022A4;)</mo>", r"<mi>\1</mi>"),
    (
        rf"((?<!<msub>){_FUNCTION}|<msub>{_FUNCTION}<mn>2</mn></msub>)(?=<m[ifnrs])",
        r'\1<mspace width="0.17em" />',
    ),
)


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
    for wrong, right in _SPACED:
        formula = re.sub(wrong, right, formula)
    return formula
