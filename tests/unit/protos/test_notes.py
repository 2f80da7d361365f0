"""A note is authentic, and what it names is still not believed to be a name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msfl.protos.notes import BadNote, Note, note_in

NOTE = Note("aggregate/3", 3, "weights", b"s" * 32, "blake3:" + "0" * 64)


def test_a_note_comes_out_as_it_went_in() -> None:
    assert note_in(NOTE.to_document()) == NOTE


@pytest.mark.parametrize("name", ["\ud800", "ä", "a" * 257])
def test_a_name_that_the_line_cannot_carry_is_no_name(name: str) -> None:
    """A lone surrogate is JSON, and no text that a message can hold: asking for it would end the whole gateway."""
    for odd in (replace(NOTE, task_id=name), replace(NOTE, artifact=name)):
        with pytest.raises(BadNote):
            note_in(odd.to_document())
