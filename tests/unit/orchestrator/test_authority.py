"""The CA signs keys of sites; what is no request is refused, whatever the library calls it."""

from __future__ import annotations

import base64

import pytest

from fakes.keyrings import NOW
from msfl.orchestrator.keyring.authority import BadRequest, create_ca, renewing_site, sign_site
from msfl.protos.channel import make_csr

VERSION_0, VERSION_5 = b"\x02\x01\x00", b"\x02\x01\x05"


def of_another_version(pem: bytes) -> bytes:
    lines = pem.strip().splitlines()
    der = base64.b64decode(b"".join(lines[1:-1])).replace(VERSION_0, VERSION_5, 1)
    return b"\n".join([lines[0], base64.encodebytes(der).strip(), lines[-1], b""])


def test_a_request_of_a_version_that_does_not_exist_is_refused() -> None:
    ca_key, ca = create_ca("msfl-01", NOW)
    _, request = make_csr("site-a")
    certificate = sign_site(ca_key, ca, request, "site-a", NOW)
    with pytest.raises(BadRequest, match="cannot be read"):
        sign_site(ca_key, ca, of_another_version(request), "site-a", NOW)
    with pytest.raises(BadRequest, match="cannot be read"):
        renewing_site(ca, certificate, of_another_version(request), b"", NOW)
