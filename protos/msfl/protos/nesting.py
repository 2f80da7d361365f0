"""How deep a document from the other side may be nested: as deep as any of ours is, several times over.

JSON's reader takes some hundred levels; what walks through a document afterwards, to copy, check or print it, needs
several calls for each, and would end its whole process. So whoever reads a document looks at its depth first.
"""

from __future__ import annotations

DEEPEST = 32


def too_deep(value: object) -> bool:
    """Whether lists and objects lie more than `DEEPEST` deep in each other. Takes no call for each level itself."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [part for part in level if isinstance(part, dict | list)]
        if not inner:
            return False
        level = [below for part in inner for below in (part.values() if isinstance(part, dict) else part)]
    return True
