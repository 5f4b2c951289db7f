"""Show the doctests of docstrings as code.

Docstrings head them `Example:`, or leave them without a heading; Griffe only knows
`Examples:` as a section of code.
"""

import re
from typing import Any

from griffe import Extension, Object

_HEADING = re.compile(r"^Example:$", re.MULTILINE)


class GriffeExamples(Extension):
    """Rename the heading before the docstring is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename it in every docstring."""
        if obj.docstring:
            obj.docstring.value = _HEADING.sub("Examples:", obj.docstring.value)
