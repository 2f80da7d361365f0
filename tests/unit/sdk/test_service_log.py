"""What a service writes about itself: one line of JSON for each event, and of a bug the whole traceback."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from msfl.sdk.main import log_to


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    before = structlog.get_config()
    file = io.StringIO()
    log_to(file)
    yield file
    structlog.configure(**before)


def test_a_bugs_traceback_is_in_its_line(written: io.StringIO) -> None:
    try:
        raise KeyError("a rule that is missing")
    except KeyError as error:
        structlog.get_logger().critical("a thread died of a bug", exc_info=(type(error), error, error.__traceback__))
    (line,) = written.getvalue().splitlines()
    said = json.loads(line)
    assert said["level"] == "critical"
    assert "KeyError: 'a rule that is missing'" in said["exception"]
    assert "test_a_bugs_traceback_is_in_its_line" in said["exception"]
