"""`msfl federation`: what the keepers of a federation sign, one after another."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.governance import World, key, member, trusted
from msfl.policies.documents import MAX_TIMESTAMP_LIFE, FederationRoot, Named, Timestamp
from msfl.policies.encoding import encode
from msfl.policies.envelope import FEDERATION_ROOT, REVOCATIONS, sign
from msfl.policies.federation import TrustFolder, app
from msfl.policies.trust import freshness, trust_revocations, trust_timestamp

ZERO = "sha256:" + "0" * 64


def root_of(*keepers: str, threshold: int = 1, version: int = 1, timekeepers: tuple[str, ...] = ()) -> FederationRoot:
    base = World().federation_root.document
    return base.model_copy(
        update={
            "keepers": tuple(member(k) for k in keepers),
            "threshold": threshold,
            "version": version,
            "timekeepers": tuple(member(k) for k in timekeepers),
        }
    )


class Desk:
    """A centre's trust folder, and everybody's key."""

    def __init__(self, folder: Path, root: FederationRoot, *signers: str) -> None:
        self.trust = TrustFolder(folder / "trust")
        self.folder = folder
        envelope = sign(encode(root), FEDERATION_ROOT, [key(s) for s in signers])
        self.trust.write("federation-root", envelope)
        self.trust.write("roots/1", envelope)
        for name in ("otto", "olga", "tim", "mallory"):
            (folder / f"{name}.pem").write_bytes(key(name).to_pem())

    def msfl(self, command: str, who: str, *more: str) -> tuple[int, str]:
        words = [command, "--trust", str(self.trust.root), "--key", str(self.folder / f"{who}.pem"), *more]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        return result.exit_code, result.output + (result.stderr if result.exit_code else "")

    def revocations(self) -> object:
        data, root = self.trust.read("revocations"), trusted(self.trust.federation_root())
        return trusted(trust_revocations(data or b"", root)).document

    def fresh(self, now: datetime | None = None) -> bool:
        root, data = trusted(self.trust.federation_root()), self.trust.read("revocations")
        listed = trusted(trust_revocations(data or b"", root))
        stamp = trusted(trust_timestamp(self.trust.read("timestamp") or b"", root))
        return freshness(stamp, root, listed, now or datetime.now(UTC)) is None


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, root_of("otto", timekeepers=("tim",)), "otto")


def test_a_list_grows_and_a_timestamp_names_the_newest(desk: Desk) -> None:
    assert desk.msfl("revoke", "otto")[0] == 0
    assert desk.msfl("timestamp", "tim", "--hours", "2")[0] == 0
    assert desk.fresh()
    assert not desk.fresh(datetime.now(UTC) + timedelta(hours=3))
    assert desk.msfl("revoke", "otto", "--release", ZERO, "--site", "site-b")[0] == 0
    assert desk.fresh(), "a list that is newer than the timestamp does not make it stale"
    assert desk.msfl("revoke", "otto", "--key-id", key("paul").id, "--policy", "site-a/some")[0] == 0
    listed = desk.revocations()
    assert listed.model_dump(include={"version", "releases", "sites", "keys", "policies"}) == {  # type: ignore[attr-defined]
        "version": 3, "releases": (ZERO,), "sites": ("site-b",), "keys": (key("paul").id,), "policies": ("site-a/some",)
    }  # fmt: skip
    assert desk.msfl("timestamp", "tim")[0] == 0
    assert desk.fresh()


@pytest.mark.parametrize(("command", "who"), [("timestamp", "otto"), ("timestamp", "mallory"), ("revoke", "tim")])
def test_whoever_does_not_sign_such_a_document_publishes_nothing(desk: Desk, command: str, who: str) -> None:
    desk.msfl("revoke", "otto")
    before = {f.name: f.read_bytes() for f in desk.trust.root.glob("*.dsse")}
    code, said = desk.msfl(command, who)
    assert code == 3
    assert "signed by none of the people" in said
    assert {f.name: f.read_bytes() for f in desk.trust.root.glob("*.dsse")} == before


def test_what_has_the_wrong_form_is_said_and_nothing_is_written(desk: Desk) -> None:
    assert desk.msfl("revoke", "otto", "--release", "latest")[0] == 2
    assert desk.msfl("timestamp", "tim")[0] == 1  # no list yet
    desk.msfl("revoke", "otto")
    assert desk.msfl("timestamp", "tim", "--hours", "1000")[0] == 2
    assert desk.trust.read("timestamp") is None
    assert desk.msfl("cosign", "otto")[0] == 1


def test_two_keepers_sign_one_after_the_other(tmp_path: Path) -> None:
    desk = Desk(tmp_path, root_of("otto", "olga", threshold=2), "otto", "olga")
    assert "waits" in desk.msfl("revoke", "otto", "--release", ZERO)[1]
    assert desk.trust.read("revocations") is None
    assert desk.msfl("cosign", "olga")[0] == 0
    assert desk.trust.read("revocations.next") is None
    # Without a timekeeper the keepers sign timestamps too, both of them.
    assert "waits" in desk.msfl("timestamp", "olga")[1]
    desk.msfl("cosign", "otto")
    assert desk.fresh()


def test_the_keepers_change(desk: Desk) -> None:
    desk.msfl("revoke", "otto", "--release", ZERO)
    desk.msfl("timestamp", "tim")
    file = desk.folder / "next.json"
    file.write_bytes(encode(root_of("olga", version=2, timekeepers=("tim",))))
    assert "waits" in desk.msfl("root", "otto", "--file", str(file))[1]
    assert desk.msfl("cosign", "olga")[0] == 0
    assert sorted(f.name for f in (desk.trust.root / "roots").iterdir()) == ["1.dsse", "2.dsse"]
    # The list of before was the old keeper's word; the new one says it again.
    assert desk.msfl("revoke", "olga")[0] == 0
    assert desk.msfl("timestamp", "tim")[0] == 0
    assert desk.fresh()
    assert desk.revocations().releases == (ZERO,)  # type: ignore[attr-defined]


def test_a_root_that_skips_a_version_is_refused(desk: Desk) -> None:
    file = desk.folder / "next.json"
    file.write_bytes(encode(root_of("otto", version=3, timekeepers=("tim",))))
    code, said = desk.msfl("root", "otto", "--file", str(file))
    assert code == 3
    assert "version 3" in said
    file.write_text(json.dumps({"kind": "FederationRoot"}))
    assert desk.msfl("root", "otto", "--file", str(file))[0] == 1


def test_a_timestamp_does_not_outlive_a_week() -> None:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    named = Named(version=1, sha256=ZERO)
    for life in (timedelta(0), MAX_TIMESTAMP_LIFE + timedelta(seconds=1)):
        with pytest.raises(ValueError, match="at most 7 days"):
            Timestamp(federation="f", version=1, root=named, revocations=named, issued=now, expires=now + life)


def test_a_list_of_another_federation_is_not_this_ones() -> None:
    root = World().federation_root
    listed = {"federation": "other", "version": 1, "issued": "2026-12-01T00:00:00Z"}
    payload = json.dumps({"api_version": "msfl/v1", "kind": "RevocationList", **listed}).encode()
    refusal = trust_revocations(sign(payload, REVOCATIONS, [key("otto")]), root)
    assert getattr(refusal, "code", "") == "root_differs"
