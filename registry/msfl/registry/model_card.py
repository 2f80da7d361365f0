"""The model card beside a recipe: what people must know before they let a model near patients.

    model-card.md      a heading for each of `SECTIONS`, with text below it
    model-card.yaml    a key for each of them (`intended_use`, …), with text

The words are the engineer's; looked for are only those that are missing. Its exact bytes are hashed into the statement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msfl.policies.encoding import Malformed, read_yaml

SECTIONS = ("Intended use", "Input", "Training and evaluation", "Limits and risks", "Contact")
MARKDOWN_CARD, YAML_CARD = "application/vnd.msfl.model-card.v1+markdown", "application/vnd.msfl.model-card.v1+yaml"
MAX_CARD_BYTES = 256 << 10
_FILES = {"model-card.md": MARKDOWN_CARD, "model-card.yaml": YAML_CARD}
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)


class BadCard(ValueError):
    """There is no model card, or it leaves questions open. The message names them."""


@dataclass(frozen=True)
class ModelCard:
    data: bytes
    media_type: str


def find_card(folder: Path) -> ModelCard:
    """Raises BadCard."""
    found = [folder / name for name in _FILES if (folder / name).is_file() and not (folder / name).is_symlink()]
    if len(found) != 1:
        what = "there is none" if not found else "there are two"
        raise BadCard(f"a release has one model card, {' or '.join(_FILES)}, in {folder}; {what}")
    card = ModelCard(found[0].read_bytes(), _FILES[found[0].name])
    if flaws := card_flaws(card):
        raise BadCard(f"{found[0]}: {'; '.join(flaws)}")
    return card


def card_flaws(card: ModelCard) -> tuple[str, ...]:
    """What a reader would miss; one phrase each."""
    if len(card.data) > MAX_CARD_BYTES:
        return (f"it has {len(card.data)} bytes; at most {MAX_CARD_BYTES} are allowed",)
    try:
        said = _markdown(card.data) if card.media_type == MARKDOWN_CARD else _yaml(card.data)
    except (Malformed, UnicodeDecodeError) as error:
        return (f"it cannot be read: {error}",)
    flaws = []
    for section in SECTIONS:
        text = said.get(section.lower())
        if text is None:
            flaws.append(f"the section {section!r} is missing")
        elif not text.strip():
            flaws.append(f"the section {section!r} is empty")
        elif "TODO" in text:
            flaws.append(f"the section {section!r} still says TODO")
    return tuple(flaws)


def _markdown(data: bytes) -> Mapping[str, str]:
    parts = _HEADING.split(data.decode("utf-8"))
    return {title.lower(): text for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def _yaml(data: bytes) -> Mapping[str, str]:
    value, _ = read_yaml(data, "model-card.yaml")
    said = value if isinstance(value, dict) else {}
    return {str(key).replace("_", " "): str(text) for key, text in said.items()}
