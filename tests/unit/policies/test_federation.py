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
from msfl.policies.words import root_in_a_line

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


ANOTHER = "give another name with --out"


class FirstDesk:
    """Before there is a federation: a JSON file and its keepers' keys."""

    def __init__(self, folder: Path, root: FederationRoot | None = None) -> None:
        self.file, self.out, self._folder = folder / "root.json", folder / "federation-root.dsse", folder
        if root is not None:
            self.file.write_bytes(encode(root))
        for name in ("otto", "olga", "mallory"):
            (folder / f"{name}.pem").write_bytes(key(name).to_pem())

    def sign(self, who: str, file: Path | None = None) -> tuple[int, str]:
        words = ["root", "--first", "--file", str(file or self.file), "--out", str(self.out)]
        result = CliRunner().invoke(app, [*words, "--key", str(self._folder / f"{who}.pem")], catch_exceptions=False)
        return result.exit_code, result.output.strip()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, root_of("otto", timekeepers=("tim",)), "otto")


def test_a_keeper_whose_key_is_stolen_is_replaced_first_and_revoked_then(desk: Desk, tmp_path: Path) -> None:
    code, said = desk.msfl("revoke", "otto", "--key-id", key("otto").id)
    assert (code, "too few keepers would be left" in said) == (1, True)
    file = tmp_path / "next.json"
    file.write_bytes(encode(root_of("otto", "olga", version=2, timekeepers=("tim",))))
    assert desk.msfl("root", "otto", "--file", str(file))[0] == 0
    assert desk.msfl("revoke", "olga", "--key-id", key("otto").id)[0] == 0
    # From now on nothing is signed with it.
    file.write_bytes(encode(root_of("olga", version=3, timekeepers=("tim",))))
    assert desk.msfl("root", "otto", "--file", str(file))[0] == 3
    assert desk.msfl("revoke", "otto", "--site", "site-b")[0] == 3
    assert desk.msfl("root", "olga", "--file", str(file))[0] == 0


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


def test_a_federation_starts_with_a_root_that_its_own_keepers_sign(tmp_path: Path) -> None:
    desk = FirstDesk(tmp_path, root_of("otto", "olga", threshold=2, timekeepers=("tim",)))
    code, said = desk.sign("otto")
    assert code == 0
    assert "federation-root.next.dsse waits for further signatures" in said
    assert not desk.out.exists(), "what its keepers have not signed is no root"
    waiting = desk.out.with_name("federation-root.next.dsse")
    first = waiting.read_bytes()
    code, said = desk.sign("olga")
    assert (code, "sign that file" in said, waiting.read_bytes() == first) == (1, True, True), "nobody's word is lost"
    code, said = desk.sign("olga", waiting)
    assert code == 0
    root = trusted(TrustFolder(tmp_path).federation_root())
    assert root_in_a_line(root.document, root.sha256) in said
    assert not waiting.exists()
    assert desk.sign("otto") == (1, f"{desk.out} is there already, and a federation has one first root: {ANOTHER}")


def test_what_is_no_first_root_is_not_signed_as_one(tmp_path: Path) -> None:
    code, said = FirstDesk(tmp_path, root_of("otto")).sign("mallory")
    assert (code, "none of the keepers that it names (otto)" in said) == (3, True)
    code, said = FirstDesk(tmp_path, root_of("otto", version=2)).sign("otto")
    assert (code, "has version 1, not 2" in said) == (1, True)
    past = root_of("otto").model_copy(update={"expires": datetime(2020, 1, 1, tzinfo=UTC)})
    code, said = FirstDesk(tmp_path, past).sign("otto")
    assert (code, "expired" in said) == (3, True)
    (tmp_path / "root.json").write_text('{"kind": "FederationRoot"}')
    assert FirstDesk(tmp_path).sign("otto")[0] == 1
    assert not list(tmp_path.glob("*.dsse"))


def test_whoever_signs_a_root_says_whether_it_is_the_first(desk: Desk) -> None:
    file = desk.folder / "next.json"
    file.write_bytes(encode(root_of("otto", version=2)))
    both = ("root", "otto", "--file", str(file), "--first", "--out", str(desk.folder / "r.dsse"))
    assert desk.msfl(*both)[0] == 2
    words = ["root", "--file", str(file), "--key", str(desk.folder / "otto.pem")]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, "--first --out FILE" in result.stderr) == (2, True)
    (desk.trust.root / "federation-root.dsse").unlink()
    code, said = desk.msfl("root", "otto", "--file", str(file))
    assert (code, "msfl federation root --first" in said) == (2, True)


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
