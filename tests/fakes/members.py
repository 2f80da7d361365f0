"""A site that has joined: its home in a folder, with a certificate of the given keyring, and nothing else in it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from fakes.keyrings import NOW, Applicant, make_token
from msfl.gateway.home import Home, SiteSettings, write
from msfl.orchestrator.keyring.keyring import Enrolled, Keyring
from msfl.protos.certificates import Identity
from msfl.protos.channel import make_csr


def joined(keyring: Keyring, site: str = "site-a", now: datetime = NOW) -> Identity:
    key, csr = make_csr(site)
    answer = Applicant(make_token(keyring, site, now=now)).enrol(keyring, csr=csr, now=now)
    assert isinstance(answer, Enrolled)
    return Identity(key, answer.certificate_pem)


def member_home(folder: Path, keyring: Keyring, link_endpoint: str = "127.0.0.1:1", now: datetime = NOW) -> Home:
    home = Home(folder)
    home.write_settings(SiteSettings("site-a", "msfl-01", link_endpoint, "registry"))
    write(folder / "tls/ca.pem", keyring.ca_pem)
    home.write_identity(joined(keyring, now=now))
    return home
