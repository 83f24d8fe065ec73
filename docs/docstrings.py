"""The docstrings of the package, as the site's Python reference reads them."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, NameResolutionError, Object

_ROLE = re.compile(r":(?:class|data|func|meth):`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(Extension):
    """Makes links of cross-references (``:class:`Name```), and code of what stands under ``Example``."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(lambda role: _link(obj, role[1]), text)


def _link(obj: Object, name: str) -> str:
    try:
        target = obj.resolve(name)
    except NameResolutionError:  # a name in full
        target = name
    # Optional: of what has no page of its own, the name alone is shown.
    return f'<autoref identifier="{target}" optional><code>{name.rpartition(".")[2]}</code></autoref>'
