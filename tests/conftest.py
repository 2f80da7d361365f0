"""What more than one folder of tests needs: a container engine, and the base of its images, while the session runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.engines import container_engine
from fakes.programs import packed_base


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


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base of tests as one packed layer (`fakes.programs.image_of` lays a program on it)."""
    return packed_base(tmp_path_factory.mktemp("base"))
