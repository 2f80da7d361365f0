"""A running site is given an image that is not what was reviewed, or that does not fit: no worker starts, and the audit
log says why."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from fakes.governed_sites import PATIENCE_S, GovernedSite
from fakes.registries import digest_of
from msfl.policies.refusals import Code
from msfl.protos.messages import StopOrder


def manifest(site: GovernedSite) -> str:
    return site.digest


def config(site: GovernedSite) -> str:
    return site.image.config_digest


def code(site: GovernedSite) -> str:
    return digest_of(site.image.layer)


def nothing_started(site: GovernedSite, why: Code) -> None:
    assert site.failure() == why.value
    assert site.runtime.started == []
    assert site.line.uploads == []
    assert site.audited("worker starts") == []
    assert site.audited("task failed") == [why.value]


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize("part", [manifest, config, code])
def test_a_part_of_the_image_was_changed_in_the_registry(
    site: GovernedSite, part: Callable[[GovernedSite], str]
) -> None:
    assert site.offer() == "allow"
    site.registry.tamper(part(site), b"evil")
    site.order()
    nothing_started(site, Code.IMAGE_BROKEN)


def test_the_registry_lost_it(site: GovernedSite) -> None:
    assert site.offer() == "allow"
    del site.registry._blobs[code(site)]
    site.order()
    nothing_started(site, Code.IMAGE_BROKEN)


def test_the_unpacked_code_was_changed_between_two_runs(site: GovernedSite) -> None:
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    (evil,) = site.home.images.glob("*/msfl/learning/__init__.py")
    evil.chmod(0o644)
    evil.write_bytes(b"evil = 1")
    site.restart()
    assert site.offer("run-2") == "allow"
    site.order()
    assert site.failure() == Code.IMAGE_BROKEN.value
    assert site.runtime.started == []
    assert site.audited("task failed") == [Code.IMAGE_BROKEN.value]


def test_it_does_not_fit(site: GovernedSite) -> None:
    small = replace(site.home.settings(), images_gib=1e-7)
    site.restart(lambda: site.home.write_settings(small))
    assert site.offer() == "allow"
    site.order()
    nothing_started(site, Code.IMAGE_DOES_NOT_FIT)


def test_a_run_holds_its_image_until_it_is_over(site: GovernedSite) -> None:
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    assert site.around.images.facts().held == 1
    site.runs[-1].hear(StopOrder("run-1", "finished", 1))
    until(lambda: site.around.images.facts().held == 0)
