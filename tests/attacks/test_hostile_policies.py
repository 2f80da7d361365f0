"""A custodian was brought to sign a policy that two readers understand differently: the site trusts none of it.

The signature is valid in every story. What the strict reader refuses is no policy, so nothing starts, and the audit log
says that the document was malformed, not that a policy was missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.governance import POLICY_YAML, edit
from fakes.governed_sites import OfferedSite, must_be_refused
from msfl.policies.encoding import MAX_YAML_BYTES

SMUGGLED = {
    "a key twice": edit(POLICY_YAML, "  min_sites: 2\n", "  min_sites: 2\n  min_sites: 1\n"),
    "an alias bomb": POLICY_YAML + "x: &a [x, x]\ny: &b [*a, *a]\n",
    "an alias": edit(POLICY_YAML, "organisations: [uni.example]", "organisations: *x"),
    "a tag": edit(POLICY_YAML, "version: 3", "version: !!int '3'"),
    "a merge key": edit(POLICY_YAML, "outputs:\n", "outputs:\n  <<: {local_model: true}\n"),
    "NO for a boolean": edit(POLICY_YAML, "local_model: false", "local_model: NO"),
    "an octal number": edit(POLICY_YAML, "max_mib: 256", "max_mib: 0400"),
    "a number to the base of sixty": edit(POLICY_YAML, "max_rounds: 300", "max_rounds: 1:30:00"),
    "an unknown key": edit(POLICY_YAML, "proof: required", "proof: required\nnetwork: host"),
    "an unknown key below": edit(POLICY_YAML, "rounds: {max: 60}", "rounds: {maximum: 60}"),
    "ten megabytes": POLICY_YAML + "#" * (10 << 20),
    "very deep": edit(POLICY_YAML, "purpose: Train", "purpose: " + "[" * 100_000 + "\n#"),
    "very many values": edit(POLICY_YAML, "datasets: [ms-trial]", f"datasets: [{'x,' * 100_000}ms-trial]"),
    "a Cyrillic letter in an id": edit(POLICY_YAML, "datasets: [ms-trial]", "datasets: [ms-tri\u0430l]"),
    "a hidden direction": edit(POLICY_YAML, "purpose: Train", "purpose: \u202eniarT"),
    "infinity": edit(POLICY_YAML, "rounds: {max: 60}", "rounds: {max: .inf}"),
    "a second document": POLICY_YAML + "---\n" + POLICY_YAML,
    "nothing at all": "",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_policy_that_means_two_things_means_nothing(tmp_path: Path, name: str) -> None:
    told = OfferedSite(tmp_path, SMUGGLED[name].encode()).told()
    must_be_refused(told, "malformed_document")


def test_the_limit_itself_is_no_attack(tmp_path: Path) -> None:
    text = POLICY_YAML + "#" * (MAX_YAML_BYTES - len(POLICY_YAML.encode()))
    assert OfferedSite(tmp_path, text.encode()).told().verdict == "allow"
