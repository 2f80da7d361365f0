"""A refusal that reveals its reason does not reveal what files and folders at the site are called, or what they hold.

The centre may ask as often as it likes; a registry that it owns decides what cannot be found in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes.governance import key
from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.policies.envelope import ASSET_POLICY, sign
from msfl.registry.interface import INDEX, referrers_tag
from msfl.registry.oci_layout import LayoutRegistry

NAME = "doe-john-mrn4711"


def answer(site: GovernedSite) -> str:
    """All that leaves, as it would be written on the line."""
    site.send()
    said = site.line.answers.get(timeout=PATIENCE_S)
    assert said.verdict == "refuse"
    return json.dumps(said.decision)


def by_somebody_else(site: GovernedSite) -> bytes:
    return sign(site.world.policy_yaml.encode(), ASSET_POLICY, [key("mallory")])


@pytest.mark.parametrize(
    ("policy", "code"), [(b"of the patient " + NAME.encode(), "malformed_document"), (None, "wrong_signer")]
)
def test_a_policy_that_does_not_count_is_not_named(site: GovernedSite, policy: bytes | None, code: str) -> None:
    (site.home.root / "policies/one.dsse").unlink()
    site.put_policy(policy or by_somebody_else(site), name=NAME)
    said = answer(site)
    assert json.loads(said)["refusal"]["code"] == code
    assert NAME not in said
    site.nothing_started(code)


def test_nor_is_it_where_others_count(site: GovernedSite) -> None:
    site.sign_policy(version=4, text=site.world.policy_yaml.replace("datasets: [ms-trial]", "datasets: [ms-other]"))
    site.put_policy(by_somebody_else(site), name=NAME)
    said = answer(site)
    assert [rule["code"] for rule in json.loads(said)["rules"]] == ["dataset_not_named", "wrong_signer"]
    assert NAME not in said


def test_where_the_registry_lies_is_not_said(site: GovernedSite, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    registry = LayoutRegistry.create(folder)
    lost = {"mediaType": INDEX, "digest": f"sha256:{'0' * 64}", "size": 2}
    named = {**lost, "annotations": {"org.opencontainers.image.ref.name": referrers_tag(site.digest)}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}))
    site.judge._registry = registry
    said = answer(site)
    assert json.loads(said)["refusal"]["code"] == "wrong_publisher"
    assert NAME not in said
    site.nothing_started("wrong_publisher")
