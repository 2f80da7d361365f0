"""A user's token in other hands: read on its way, in the centre's store or at another site; and calls from elsewhere.

Each attempt ends at the door: no run is stored, nothing is listed, and the answer carries the code that stands in the
centre's audit log.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from fakes.governance import AUDIENCE, ISSUER, World, key
from msfl.orchestrator.doors.addresses import LOOPBACK, Callers
from msfl.orchestrator.doors.link import Datasets
from msfl.orchestrator.doors.people import PeopleDoor
from msfl.orchestrator.engine import Engine
from msfl.orchestrator.releases import Releases
from msfl.orchestrator.runs.events import Submitted
from msfl.policies.encoding import encode
from msfl.policies.identity import mint_token, sign_call, sign_job
from msfl.policies.trust import NOTHING_REVOKED, Revoked
from msfl.protos.key_sets import KeySets
from msfl.protos.messages import CALL_PROOF, PEOPLE_METHOD, PROTOCOL
from msfl.protos.v1 import federation_pb2 as wire

ADA, EVE = "ada@uni.example", "eve@uni.example"
SPEC = World().job


class Said(Exception):
    """What the door answered instead."""


class Context:
    def __init__(self, peer: str, *metadata: tuple[str, str]) -> None:
        self._peer = peer
        self._metadata = metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Said(details)


class SilentEngine:
    def __init__(self) -> None:
        self.submitted: list[Submitted] = []

    def now(self) -> float:
        return datetime.now(UTC).timestamp()

    def runs(self) -> list[Any]:
        return []

    def submit(self, event: Submitted) -> None:
        self.submitted.append(event)


class Door:
    """The door for people, before an engine that only notes what it is given."""

    def __init__(
        self,
        allowed: tuple[str, ...] = LOOPBACK,
        proxies: tuple[str, ...] = (),
        revoked: Revoked = NOTHING_REVOKED,
    ) -> None:
        self.turned_away: list[tuple[str, str, str]] = []
        self.engine = SilentEngine()
        datasets = Datasets()
        for ref in SPEC.datasets:
            datasets.put(ref.split("/")[0], ({"ref": ref},))
        engine, root = cast(Engine, self.engine), World().federation_root
        callers = Callers.of(allowed, proxies)
        releases, key_sets = cast(Releases, None), KeySets(Path("none"))
        self._door = PeopleDoor(engine, root, datasets, releases, key_sets, callers, lambda: revoked, self._note)

    def _note(self, door: str, code: str, who: str, peer: str) -> None:
        assert door == "people"
        self.turned_away.append((code, who, peer))

    def list(self, *metadata: tuple[str, str], peer: str = "ipv4:127.0.0.1:40000") -> str:
        """Empty: the runs were listed. Else what was said instead."""
        answer = ""
        try:
            self._door.List(wire.ListWhat(what="runs"), Context(peer, *metadata))
        except Said as said:
            answer = str(said)
        assert not answer or answer.startswith(f"{self.turned_away[-1][0]}: ")
        return answer

    def submit(self, *metadata: tuple[str, str], proof: str, dry_run: bool = False) -> str:
        job = wire.Job(protocol=PROTOCOL, spec=encode(SPEC), proof=proof, dry_run=dry_run)
        try:
            self._door.Submit(job, Context("ipv4:127.0.0.1:40000", *metadata))
        except Said as said:
            return str(said)
        return ""


def bearer(user: str = ADA) -> str:
    """Bound to ada's key."""
    jkt = key("ada").thumbprint
    return mint_token(key("issuer"), ISSUER, AUDIENCE, user, user, "uni.example", jkt, datetime.now(UTC))


def call(
    token: str, method: str = "List", signer: str = "ada", ago: timedelta = timedelta(0)
) -> tuple[tuple[str, str], tuple[str, str]]:
    when = datetime.now(UTC) - ago
    signed = sign_call(PEOPLE_METHOD + method, token, key(signer), when, secrets.token_hex(8))
    return ("authorization", f"Bearer {token}"), (CALL_PROOF, signed)


# ---------------------------------------------------------------------------------------- the token alone


def test_its_owner_is_served() -> None:
    assert Door().list(*call(bearer())) == ""


def test_a_stolen_token_without_its_key_opens_nothing() -> None:
    door, token = Door(), bearer()
    assert "proof_required:" in door.list(("authorization", f"Bearer {token}"))
    assert door.turned_away == [("proof_required", ADA, "127.0.0.1")]
    assert "proof_other_key" in door.list(*call(token, signer="mallory"))
    assert "proof_invalid" in door.list(("authorization", f"Bearer {token}"), (CALL_PROOF, "x.y.z"))
    assert "proof_invalid" in door.list(("authorization", f"Bearer {token}"), (CALL_PROOF, token))


def test_a_call_that_was_recorded_is_answered_once() -> None:
    door, recorded = Door(), call(bearer())
    assert door.list(*recorded) == ""
    assert "was made before" in door.list(*recorded)
    assert door.turned_away == [("proof_invalid", ADA, "127.0.0.1")]


def test_a_recorded_call_serves_no_other_method_token_or_time() -> None:
    door, token = Door(), bearer()
    assert "proof_invalid" in door.list(*call(token, method="Abort"))
    assert "proof_invalid" in door.list(*call(token, ago=timedelta(minutes=2)))
    assert "proof_invalid" in door.list(*call(token, ago=timedelta(minutes=-2)))
    _, proof = call(token)
    assert "proof_invalid" in door.list(("authorization", f"Bearer {bearer(EVE)}"), proof)


def test_the_proof_of_a_job_is_no_proof_of_a_call_nor_the_reverse() -> None:
    door, token = Door(), bearer()
    job = sign_job(encode(SPEC), key("ada"))
    assert "proof_invalid" in door.list(("authorization", f"Bearer {token}"), (CALL_PROOF, job))
    _, other = call(token, "Submit")
    assert "proof_invalid" in door.submit(*call(token, "Submit"), proof=other[1])
    assert door.engine.submitted == []


def test_a_job_that_was_only_asked_about_is_not_run_nor_the_reverse() -> None:
    """What somebody got from `explain` is not offered as a run."""
    door, token = Door(), bearer()
    asked, wanted = (sign_job(encode(SPEC), key("ada"), dry_run=d) for d in (True, False))
    assert "proof_invalid" in door.submit(*call(token, "Submit"), proof=asked)
    assert "proof_invalid" in door.submit(*call(token, "Submit"), proof=wanted, dry_run=True)
    assert door.engine.submitted == []
    assert door.turned_away == [("proof_invalid", ADA, "127.0.0.1")] * 2
    assert door.submit(*call(token, "Submit"), proof=asked, dry_run=True) == ""
    assert door.submit(*call(token, "Submit"), proof=wanted) == ""
    assert [event.dry_run for event in door.engine.submitted] == [True, False]


# -------------------------------------------------------------------------------------- revoked


def test_a_token_of_a_revoked_issuers_key_opens_nothing() -> None:
    door, token = Door(revoked=Revoked(keys=frozenset({key("issuer").id}))), bearer()
    assert "issuer_key_revoked" in door.list(*call(token))
    proof = sign_job(encode(SPEC), key("ada"))
    assert "issuer_key_revoked" in door.submit(*call(token, "Submit"), proof=proof)
    assert door.engine.submitted == []


def test_a_job_that_names_a_revoked_site_is_not_taken() -> None:
    door = Door(revoked=Revoked(sites=frozenset({SPEC.sites[0]})))
    assert "site_revoked" in door.submit(*call(bearer(), "Submit"), proof=sign_job(encode(SPEC), key("ada")))
    assert door.engine.submitted == []


# -------------------------------------------------------------------------------------- from somewhere else


@pytest.mark.parametrize("peer", ["ipv4:10.9.9.9:1", "ipv6:[2001:db8::1]:1", "ipv6:[::ffff:10.9.9.9]:1", "unix:/tmp/s"])
def test_an_address_that_is_not_allowed_is_not_served_even_with_everything_else(peer: str) -> None:
    door = Door()
    assert "address_not_allowed" in door.list(*call(bearer()), peer=peer)
    assert [(code, who) for code, who, _ in door.turned_away] == [("address_not_allowed", "")]


def test_a_forwarded_header_of_nobody_in_particular_says_nothing() -> None:
    for header in ("127.0.0.1", "127.0.0.1, 127.0.0.1", "::1", "::ffff:127.0.0.1"):
        spoofed = Door().list(*call(bearer()), ("x-forwarded-for", header), peer="ipv4:10.9.9.9:1")
        assert "address_not_allowed" in spoofed
    # And who is allowed is not kept out by what the header says.
    assert Door().list(*call(bearer()), ("x-forwarded-for", "10.9.9.9")) == ""


def test_an_ipv4_address_inside_ipv6_is_the_ipv4_address() -> None:
    assert Door().list(*call(bearer()), peer="ipv6:[::ffff:127.0.0.1]:1") == ""
    door = Door(("10.20.0.0/16",))
    assert door.list(*call(bearer()), peer="ipv6:%5B::ffff:10.20.1.1%5D:1") == ""
    assert "address_not_allowed" in door.list(*call(bearer()), peer="ipv6:[::ffff:10.21.1.1]:1")
    assert Door(("::ffff:10.20.0.0/112",)).list(*call(bearer()), peer="ipv4:10.20.1.1:1") == ""


def test_a_named_proxy_is_believed_as_far_as_it_saw() -> None:
    door = Door(("10.20.0.0/16",), ("192.0.2.1", "192.0.2.2"))

    def through(*headers: str, peer: str = "ipv4:192.0.2.1:1") -> str:
        return door.list(*call(bearer()), *(("x-forwarded-for", h) for h in headers), peer=peer)

    assert through("10.20.1.1") == ""
    assert through("10.20.1.1, 192.0.2.2") == ""
    assert through("10.20.1.1", "192.0.2.2") == "", "several headers are one list"
    assert through("::ffff:10.20.1.1") == ""
    for spoofed in (
        ("10.20.1.1, 203.0.113.9",),  # the caller wrote the first, the proxy saw the second
        ("10.20.1.1", "203.0.113.9"),
        ("10.20.1.1, 203.0.113.9, 192.0.2.2",),
        ("10.20.1.1, unknown",),
        ("10.20.1.1, 10.20.1.1:443",),
        ("10.20.1.1, ",),
        ("",),
        (),  # the proxy itself is not a person
    ):
        assert "address_not_allowed" in through(*spoofed)
    assert "address_not_allowed" in through("10.20.1.1", peer="ipv4:192.0.2.3:1")


def test_what_is_no_range_is_found_at_once() -> None:
    for text in ("10.20.0.1/16", "10.20.0.0/33", "everybody", ""):
        with pytest.raises(ValueError, match=r"."):
            Callers.of((text,))
    assert Callers.of(()).check("127.0.0.1", ()) is not None, "no range, nobody"
