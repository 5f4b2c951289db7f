r"""Write formulas as MathML when the site is built.

Browsers draw MathML themselves, so that neither the build nor a reader needs a network
or a script. `pymdownx.arithmatex` marks formulas as `\(...\)` and `\[...\]`.
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


def on_page_content(content: str, **_: Any) -> str:
    """Replace every marked formula of a page."""
    return _MARKED.sub(_formula, content)


def _formula(found: re.Match) -> str:
    display = "block" if found["open"] == "[" else "inline"
    return convert(html.unescape(found["body"]).strip(), display=display)
