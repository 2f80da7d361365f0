"""Joining again over an existing home: only with a token of this very site and federation, else nothing is sent."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from fakes.keyrings import NOW, make_keyring, make_token
from fakes.members import member_home
from msfl.gateway.enrol import EnrolmentFailed, enrol, enrol_again
from msfl.gateway.home import Home, write
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.protos.registration import BadToken


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return make_keyring(tmp_path)


@pytest.fixture
def home(tmp_path: Path, keyring: Keyring) -> Home:
    home = member_home(tmp_path / "home", keyring)
    token = make_token(keyring)
    write(home.root / "trust/federation-root.sha256", token.federation_root_sha256.encode())
    write(home.root / "secrets/centre.pub", token.centre_public_key)
    return home


def test_a_home_is_not_enrolled_twice_by_mistake(home: Home, keyring: Keyring) -> None:
    with pytest.raises(EnrolmentFailed, match="--again"):
        enrol(make_token(keyring), home.root, {}, NOW, accept=lambda _: True)


def test_a_folder_that_is_no_home_is_not_enrolled_again(tmp_path: Path, keyring: Keyring) -> None:
    with pytest.raises(EnrolmentFailed, match="no gateway's home yet"):
        enrol_again(make_token(keyring), tmp_path / "empty", NOW)


def test_the_token_must_be_this_sites(home: Home, keyring: Keyring) -> None:
    with pytest.raises(EnrolmentFailed, match="for site-b, and this is the home of site-a"):
        enrol_again(make_token(keyring, "site-b"), home.root, NOW)


def test_the_token_must_be_of_this_federation(home: Home, tmp_path: Path) -> None:
    stranger = make_keyring(tmp_path / "stranger")
    with pytest.raises(EnrolmentFailed, match="another certificate authority; of another aggregator host"):
        enrol_again(make_token(stranger), home.root, NOW)


def test_an_expired_token_is_said_to_be_one(home: Home, keyring: Keyring) -> None:
    with pytest.raises(BadToken, match="expired"):
        enrol_again(make_token(keyring), home.root, NOW + timedelta(days=2))
