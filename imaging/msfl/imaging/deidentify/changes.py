"""Before and after, for the custodian: one line for each attribute of a series, and what became of it.

What is shown holds the identifiers themselves. It is written beside the custodian's own list, with its rights, and
never into the dataset's folder.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset

_LONGEST = 80


@dataclass(frozen=True)
class Change:
    """`attribute` with its tag; nested ones as `outer > inner`. `became` is "" for what is gone."""

    attribute: str
    was: str
    became: str

    @property
    def verdict(self) -> str:
        return (
            "kept" if self.was == self.became else "removed" if not self.became else "replaced" if self.was else "added"
        )


def changes(before: Dataset, after: Dataset) -> tuple[Change, ...]:
    """Every attribute of either header, in the order of tags."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return tuple(Change(name, old.get(name, ""), new.get(name, "")) for name in sorted(old.keys() | new.keys()))


def _flat(dataset: Dataset, outer: str = "") -> Iterator[tuple[str, str]]:
    if not outer:
        yield from _flat(getattr(dataset, "file_meta", Dataset()), "file")
    for element in dataset:
        name = f"{outer} > " * bool(outer) + f"{element.tag} {element.keyword or element.name}"
        if element.VR == "SQ":
            for number, item in enumerate(element.value, 1):
                yield from _flat(item, f"{name} {number}")
        elif element.VR in ("OB", "OW", "OF", "OD", "OL", "OV", "UN"):
            yield name, f"{len(element.value or b'')} bytes"
        else:
            text = str(element.value)
            yield name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>What de-identification did</title>
<style>body{{font:14px system-ui;margin:2em}}table{{border-collapse:collapse;margin-bottom:2em}}
td,th{{border:1px solid #ccc;padding:2px 8px;text-align:left;vertical-align:top}}
.removed{{background:#fdd}}.replaced{{background:#ffd}}.added{{background:#dfd}}</style>
<h1>What de-identification did</h1>
<p><b>This page names the patient.</b> It is for the custodian of this site; do not pass it on.</p>{body}</html>
"""


def as_html(series: Mapping[str, tuple[Change, ...]]) -> str:
    """One table per series; `series` maps a heading to its changes. Self-contained; every value is escaped."""
    return _PAGE.format(body="".join(_table(heading, rows) for heading, rows in series.items()))


def _table(heading: str, rows: tuple[Change, ...]) -> str:
    counts = {v: sum(row.verdict == v for row in rows) for v in ("kept", "replaced", "removed", "added")}
    lines = "".join(
        f'<tr class="{row.verdict}"><td>{html.escape(row.attribute)}<td>{html.escape(row.was)}'
        f"<td>{html.escape(row.became)}<td>{row.verdict}"
        for row in rows
    )
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return (
        f"<h2>{html.escape(heading)}</h2><p>{summary}</p><table><tr><th>attribute<th>before<th>after<th>{lines}</table>"
    )
