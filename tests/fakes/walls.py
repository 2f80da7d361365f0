"""What tests of both runtimes' walls share: asking the probes, and waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0


def ask(folder: Path, **asked: Any) -> None:
    """Lay what the probes are to do into F's inbox."""
    for part in ("inbox", "outbox", "scratch", "figures"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "inbox" / "probe.json").write_text(json.dumps(asked))
    (folder / "inbox" / "probe.json").chmod(0o444)


def told(folder: Path) -> dict[str, Any]:
    """What the probes have written down so far."""
    found = folder / "outbox" / "facts"
    return dict(json.loads(found.read_text())) if found.exists() else {}


def until(happens: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    give_up = time.monotonic() + patience_s
    while not (result := happens()):
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.05)
    return result
