"""The files of a folder, and no others: links that lead out of it are left out, whatever they are called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def regular_files(root: Path, outside: list[Path]) -> Iterator[Path]:
    """Every file below `root`, sorted; what leads out of it, or is neither file nor folder, goes to `outside`.

    Linked folders are not entered: they could lead in circles.
    """
    top = Path(os.path.realpath(root))
    if top.is_file():
        yield top
        return
    for folder, names, files in os.walk(top):
        names.sort()
        for name in names:
            if (path := Path(folder, name)).is_symlink():
                outside.append(path)
        for name in sorted(files):
            path = Path(folder, name)
            if stays_inside(path, top) and path.is_file():
                yield path
            else:
                outside.append(path)


def stays_inside(path: Path, root: Path) -> bool:
    """Also after all links were followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
