"""What more than one folder of tests needs: a container engine, for as long as the session runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from fakes.engines import container_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """The address of a container engine; DOCKER_HOST names it, too. Skips, or fails where it must be there."""
    before = os.environ.get("DOCKER_HOST")
    with container_engine() as address:
        os.environ["DOCKER_HOST"] = address
        yield address
    if before is None:
        del os.environ["DOCKER_HOST"]
    else:
        os.environ["DOCKER_HOST"] = before
