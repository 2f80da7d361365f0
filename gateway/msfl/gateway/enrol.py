"""How a site joins: the registration token in, the site's own keys and roots out.

1  the token's checksum and expiry; a home that can be written, custodians that can be named: before the token is used
2  a fresh TLS key, made here; the CSR and a proof go out over TLS that trusts the token's CA alone
3  the certificate comes back, and the federation root, whose hash must be the token's, and whom the custodian accepts
4  the site root: made here, naming this site's custodians, signed by them; the centre has no standing in it
5  everything is written at once, at the end: a failed enrolment leaves no half a home

`enrol_again`, for a site whose certificate has expired or whose keys are to be replaced: 1 and 2, and then only key,
certificate, the symmetric key and the endpoints of the token take the place of the old ones. Roots, policies and audit
log stay, and so do running runs, each with the symmetric key that it began with.
The token must be of this very site and federation; the federation's root may have been followed by another one since,
which this site takes up once it is on the line again. A gateway that is running takes the new certificate up by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import grpc
from pydantic import ValidationError

from msfl.gateway.disk import probe
from msfl.gateway.home import Home, SiteSettings, write
from msfl.gateway.memory import Mark, Memory
from msfl.policies.documents import Member, SiteRoot
from msfl.policies.encoding import encode
from msfl.policies.envelope import SITE_ROOT, sign
from msfl.policies.keys import KeyPair, encode_public
from msfl.policies.refusals import CannotProceed, Refusal, Refused
from msfl.policies.trust import TrustedFederationRoot, trust_federation_root, trust_site_root
from msfl.protos.certificates import Identity, unfit
from msfl.protos.channel import dial, make_csr
from msfl.protos.messages import PROTOCOL
from msfl.protos.registration import RegistrationToken, proof
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import EnrolmentStub
from msfl.runtime.choice import DEFAULT, RuntimeChoice

SITE_ROOT_LIFE = timedelta(days=730)
PATIENCE_S = 30.0


class EnrolmentFailed(CannotProceed):
    """What happened, where, and what to do."""


def enrol(
    token: RegistrationToken,
    root: Path,
    custodians: Mapping[str, KeyPair],
    now: datetime,
    accept: Callable[[TrustedFederationRoot], bool],
    runtime: RuntimeChoice = DEFAULT,
) -> Home:
    """Join a federation as `token.site`. `custodians`: person → key. `accept`: whether the custodian accepts those whom
    the federation root names, who will say what may run here. `runtime`: what workers will run in.

    Raises BadToken, EnrolmentFailed, Refused (the federation root is not the one the token names), OSError.
    """
    token.check(now)
    if (root / "site.json").exists():
        what = f"{root} belongs to a site already: choose another folder, or say --again to renew its certificate"
        raise EnrolmentFailed(what)
    try:
        members = tuple(
            Member(person=p, key_id=k.id, public_key=encode_public(k.public)) for p, k in custodians.items()
        )
    except ValidationError as error:
        what = f"{', '.join(custodians)} is no name for a signer: use lower-case letters, digits and . _ + @ -"
        raise EnrolmentFailed(what) from error
    _must_be_writable(root)
    key, csr = make_csr(token.site)
    certificate = _ask(token, csr, again=False)
    federation = trust_federation_root(certificate.federation_root, token.federation_root_sha256, now)
    if isinstance(federation, Refusal):
        raise Refused(federation)
    if not accept(federation):
        what = f"{token.site} has not joined {token.federation}: its root was not accepted, and nothing was written. "
        raise EnrolmentFailed(f"{what}The token is used up; the operator can make another one")
    site_root = SiteRoot(site=token.site, version=1, custodians=members, threshold=1, expires=now + SITE_ROOT_LIFE)
    home = Home(root)
    files = {
        "tls/identity.pem": Identity(key, certificate.certificate_pem).to_pem(),
        "tls/ca.pem": token.ca_certificate.encode(),
        "secrets/site.key": token.site_key,
        "secrets/centre.pub": token.centre_public_key,
        "trust/federation-root.dsse": certificate.federation_root,
        "trust/federation-root.sha256": token.federation_root_sha256.encode(),
        "trust/site-root.dsse": sign(encode(site_root), SITE_ROOT, custodians.values()),
    }
    for name, data in files.items():
        write(root / name, data)
    for folder in ("policies", "datasets", "runs", "pending", "confirmed"):
        (root / folder).mkdir(exist_ok=True, mode=0o700)
    memory = Memory(home.memory_file)
    trusted = trust_site_root(files["trust/site-root.dsse"], token.site, now)
    assert not isinstance(trusted, Refusal), trusted
    memory.remember("site-root", token.site, Mark(trusted.document.version, trusted.sha256))
    memory.remember("federation-root", token.federation, Mark(federation.document.version, federation.sha256))
    memory.saw(now)
    memory.close()
    settings = SiteSettings(token.site, token.federation, token.link_endpoint, token.registry, runtime=runtime)
    home.write_settings(settings)
    return home


def enrol_again(token: RegistrationToken, root: Path, now: datetime) -> Home:
    """A new key and certificate for the member whose home `root` is. Raises BadToken, EnrolmentFailed."""
    token.check(now)
    home = Home(root)
    if not (root / "site.json").exists():
        raise EnrolmentFailed(f"{root} is no gateway's home yet: enrol without --again")
    settings = home.settings()
    same = {
        f"for {token.site}, and this is the home of {settings.site}": token.site == settings.site,
        f"of the federation {token.federation}, not {settings.federation}": token.federation == settings.federation,
        "of another certificate authority": token.ca_certificate.encode() == home.ca_pem,
        "of another aggregator host": token.centre_public_key == home.secret("centre.pub"),
    }
    differs = [what for what, is_same in same.items() if not is_same]
    if differs:
        # Before anything is sent: the token is still good.
        raise EnrolmentFailed(f"the token is {'; '.join(differs)}. Ask the operator, or enrol in an empty folder")
    key, csr = make_csr(token.site)
    identity = Identity(key, _ask(token, csr, again=True).certificate_pem)
    if (why := unfit(identity, token.site, home.ca_pem, now)) is not None:
        raise EnrolmentFailed(f"{token.endpoint} sent a certificate that is of no use: {why}")
    write(root / "secrets/site.key", token.site_key)
    home.write_settings(replace(settings, link_endpoint=token.link_endpoint, registry=token.registry))
    home.write_identity(identity)
    return home


def _must_be_writable(root: Path) -> None:
    """Find out before the token is used; what is not there yet is not there afterwards. Raises OSError."""
    there = root.exists()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        probe(root)
    finally:
        if not there:
            root.rmdir()


def _ask(token: RegistrationToken, csr: bytes, *, again: bool) -> wire.EnrolmentCertificate:
    channel = dial(token.endpoint, token.ca_certificate.encode())
    stub = EnrolmentStub(channel)
    try:
        begin = wire.BeginEnrolment(protocol=PROTOCOL, token_id=token.token_id)
        nonce = stub.Begin(begin, timeout=PATIENCE_S, wait_for_ready=True).nonce
        shown = proof(token.secret, csr, token.ca_sha256, nonce)
        asked = wire.EnrolmentProof(token_id=token.token_id, csr_pem=csr, nonce=nonce, proof=shown, again=again)
        answer: wire.EnrolmentCertificate = stub.Enrol(asked, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        what = f"{token.endpoint} did not enrol {token.site}: {error.details()} ({error.code().name})"
        raise EnrolmentFailed(what) from error
    finally:
        channel.close()
    return answer
