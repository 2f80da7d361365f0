"""One gateway at a time serves a home: two would both answer every offer, and each would spoil the other's records."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from msfl.policies.refusals import CannotProceed
from msfl.protos.only_one import only_one


def alone(home: Path) -> AbstractContextManager[None]:
    """Raises CannotProceed where another gateway serves the home."""
    return only_one(home, CannotProceed(f"Another gateway serves {home} already: stop that one first."))
