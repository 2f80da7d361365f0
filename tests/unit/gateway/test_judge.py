"""What a site says to a release that it could not start: before anybody has waited for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.governed_sites import GovernedSite
from msfl.policies.documents import BaseName, Materials

PAPERS = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("base", "containers", "answer"),
    [
        (None, True, "image_not_self_contained"),
        (None, False, "allow"),
        (BaseName(name="msfl-base:1", digest=PAPERS), True, "allow"),
    ],
)
def test_a_site_with_containers_takes_only_what_they_can_run(
    tmp_path: Path, base: BaseName | None, containers: bool, answer: str
) -> None:
    site = GovernedSite(tmp_path)
    site.put_release(api_version="msfl/v2", materials=Materials(sbom=PAPERS, model_card=PAPERS, base=base))
    assert site.hear(site.papers()) == []
    site.judge._whole_images = containers
    assert site.offer() == answer
    site.close()
