"""The orchestrator's process wants one site's update in clear: it orders a "sum" of one, whatever the job says.

The number is the signed job's. Each gateway, which has verified the job, binds it to the box with its secret; the
keyring opens the box for no other number, and hands the number to the aggregator with the keys. (An orchestrator that
asks for the keys itself gets them: docs/threat-model.md says so.)
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fakes.governed_sites import GovernedSite
from fakes.hosts import Host
from fakes.keyrings import Applicant, make_token
from fakes.models import FakeModel, zeros
from fakes.sites import SealedSites
from msfl.orchestrator.keyring.keyring import Enrolled, Keyring, SecretUnusable
from msfl.protos.registration import RegistrationToken
from msfl.protos.sealing import EVERYBODY, MIN_SITES, open_with, wrap_run_secret
from msfl.protos.tasklink import Result

NOW = datetime(2026, 11, 2, 12, tzinfo=UTC)
SECRET = bytes([9]) * 32


@pytest.fixture
def sites(tmp_path: Path) -> SealedSites:
    return SealedSites(tmp_path / "sealed", "site-a", "site-b", "site-c")


@pytest.fixture
def host(tmp_path: Path, sites: SealedSites) -> Iterator[Host]:
    with Host.of(FakeModel(), tmp_path / "f", role="aggregator") as host:
        assert isinstance(sites.open(host, min_sites=2), Result)
        fingerprints = {s: sites.up(sites.header(s, "fingerprint", 0), {"n_cases": 4}) for s in sites.names}
        sites.keep(host, host.do("plan", {"recipients": sites.names}, fingerprints))
        yield host


@pytest.mark.parametrize("ordered", [{}, {"min_sites": 1}, {"min_sites": 0}, {"min_sites": -1}])
def test_a_sum_of_one_is_not_made_whatever_is_ordered(host: Host, sites: SealedSites, ordered: dict[str, int]) -> None:
    mine = {name: values + np.float32(2) for name, values in zeros().items()}
    files = {"site-b": sites.update("site-b", 1, mine), **sites.kept}
    alone = host.do("aggregate", {"recipients": [], **ordered}, files, round=1)
    assert isinstance(alone, Result), alone
    assert (alone.files, alone.document["sites"]) == ({}, {})
    # Two are a sum, and more may be asked for than the job does.
    files["site-c"] = sites.update("site-c", 1, zeros())
    both = host.do("aggregate", {"recipients": [], **ordered}, files, round=1)
    assert isinstance(both, Result)
    assert set(both.document["sites"]) == {"site-b", "site-c"}
    strict = host.do("aggregate", {"recipients": [], "min_sites": 3}, files, round=1)
    assert isinstance(strict, Result)
    assert strict.document["sites"] == {}


def enrolled(keyring: Keyring) -> RegistrationToken:
    token = make_token(keyring, now=NOW)
    assert isinstance(Applicant(token).enrol(keyring, now=NOW), Enrolled)
    return token


def test_the_keyring_hands_no_key_over_with_another_number_than_the_site_has_read(tmp_path: Path) -> None:
    keyring = Keyring.create(tmp_path / "keyring", "msfl-01", NOW)
    token, aggregator = enrolled(keyring), X25519PrivateKey.generate()
    public = aggregator.public_key().public_bytes_raw()
    box = wrap_run_secret(token.centre_public_key, SECRET, "run-7", "site-a", token.site_key, 2)
    for number in (0, 1, 3):
        with pytest.raises(SecretUnusable, match="site-a"):
            keyring.hand_over("run-7", {"site-a": box}, public, NOW, min_sites=number)
    sealed = keyring.hand_over("run-7", {"site-a": box}, public, NOW, min_sites=2)
    handed = json.loads(open_with(aggregator.private_bytes_raw(), sealed, b"msfl/aggregator-keys/v1|run-7"))
    assert handed.keys() == {EVERYBODY, MIN_SITES, "site-a"}
    assert int.from_bytes(base64.b64decode(handed[MIN_SITES]), "big") == 2


def test_a_box_of_an_earlier_gateway_says_no_number_and_opens(tmp_path: Path) -> None:
    keyring = Keyring.create(tmp_path / "keyring", "msfl-01", NOW)
    token, public = enrolled(keyring), X25519PrivateKey.generate().public_key().public_bytes_raw()
    box = wrap_run_secret(token.centre_public_key, SECRET, "run-7", "site-a", token.site_key)
    assert keyring.hand_over("run-7", {"site-a": box}, public, NOW, min_sites=2)


def test_a_site_binds_its_secret_to_the_number_of_the_job_that_it_verified(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[int] = []

    def wrap(public: bytes, secret: bytes, run_id: str, name: str, site_key: bytes, min_sites: int = 0) -> bytes:
        bound.append(min_sites)
        return wrap_run_secret(public, secret, run_id, name, site_key, min_sites)

    monkeypatch.setattr("msfl.gateway.site_run.wrap_run_secret", wrap)
    site.send()
    assert site.answered() == "allow"
    assert bound == [site.world.job.min_sites] == [2]
