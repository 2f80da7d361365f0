"""Attack 22: an audit log is edited, shortened, reordered, made anew as a whole, or told differently to two parties.

The verifier has exported files and nothing else: no home, no network, no secret. Each attack is named: which entry,
which checkpoint, whose. The attacker owns everything of the party it attacks, its signing key included.
"""

from __future__ import annotations

import errno
import json
import queue
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fakes.audit_logs import Party, federation, meet, verified
from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway.site_run import RunAtSite
from msfl.policies.audit import Entry, append, from_line
from msfl.policies.audit_files import Exported, Tampering, Verdict, read_export, verify_files
from msfl.policies.documents import parse_utc
from msfl.policies.encoding import Malformed, encode
from msfl.protos.audit_log import AuditBroken
from msfl.protos.audit_main import app
from msfl.protos.messages import Offer
from msfl.protos.notary import NoAudit, export_of


@pytest.fixture
def parties(tmp_path: Path) -> Iterator[list[Party]]:
    yield from federation(tmp_path)


@pytest.fixture
def site_at_work(tmp_path: Path) -> Iterator[GovernedSite]:
    site = GovernedSite(tmp_path)
    assert site.hear(site.papers()) == []
    yield site
    site.close()


@pytest.fixture
def centre(parties: list[Party]) -> Party:
    return parties[0]


@pytest.fixture
def site(parties: list[Party]) -> Party:
    return parties[1]


def with_lines(exported: Exported, entries: list[bytes]) -> Exported:
    """What a forger hands in: other entries, and a first line that agrees with them."""
    said = exported.said.model_copy(update={"entries": len(entries)})
    return replace(exported, said=said, entries=tuple(entries))


def only(verdict: Verdict, code: str) -> Tampering:
    assert {t.code for t in verdict.tampering} == {code}, verdict.tampering
    return verdict.tampering[0]


def rehashed(lines: list[bytes], first: int, change: str) -> list[bytes]:
    """The whole chain from `first` on made anew, so that it is whole in itself."""
    entries: list[Entry] = []
    for n, line in enumerate(lines):
        old = from_line(line)
        assert isinstance(old, Entry)
        fields = {**old.fields, "task": change} if n == first else old.fields
        at = parse_utc(old.at)
        entries.append(append(entries[-1] if entries else None, at, old.actor, old.action, old.object, fields))
    return [e.to_line() for e in entries]


def test_logs_that_nobody_touched_verify_and_others_vouch_for_them(parties: list[Party]) -> None:
    verdict = verified(*parties)
    assert verdict.tampering == ()
    assert verdict.unseen == ()
    # Behind the last exchange each has written down one thing at most: the other's key, at the very first.
    for party in parties[1:]:
        assert verdict.entries[party.name] == len(party.lines())
        assert verdict.vouched[party.name] == verdict.entries[party.name]


def test_an_edited_entry_is_named(site: Party, centre: Party) -> None:
    lines = site.lines()
    lines[6] = lines[6].replace(b"task begins", b"task beginz")
    verdict = verify_files([with_lines(site.exported(), lines), centre.exported()])
    found = next(t for t in verdict.tampering if t.code == "chain_broken")
    assert (found.log, found.entry) == ("site:site-a", 6)
    assert "entry 6: line 7 was changed after it was written" in found.message
    assert verdict.vouched["site:site-a"] <= 6, "nobody confirms what was changed"


@pytest.mark.parametrize("drop", [0, 5, 9])
def test_a_deleted_entry_is_named(site: Party, centre: Party, drop: int) -> None:
    lines = site.lines()
    del lines[drop]
    verdict = verify_files([with_lines(site.exported(), lines), centre.exported()])
    assert ("chain_broken", drop) in {(t.code, t.entry) for t in verdict.tampering}


def test_swapped_entries_are_named(site: Party, centre: Party) -> None:
    lines = site.lines()
    lines[3], lines[4] = lines[4], lines[3]
    verdict = verify_files([with_lines(site.exported(), lines), centre.exported()])
    assert ("chain_broken", 3) in {(t.code, t.entry) for t in verdict.tampering}


def test_a_cut_end_is_found_by_the_checkpoint_that_the_centre_keeps(site: Party, centre: Party) -> None:
    whole = len(site.lines())
    forged = with_lines(site.exported(), site.lines()[:-3])
    # The attacker removes its own checkpoints of the missing end, too.
    forged = replace(forged, said=forged.said.model_copy(update={"checkpoints": 0}), checkpoints=())
    assert verify_files([forged]).tampering == ()
    found = only(verify_files([forged, centre.exported()]), "end_missing")
    assert found.entry == whole - 3
    assert f"centre:demo keeps its checkpoint of {whole} entries" in found.message
    assert f"entries {whole - 3} to {whole - 1} are missing" in found.message


def backdated(exported: Exported, cut: int) -> Exported:
    """Its last entries gone, its owner's own checkpoints of them, too, and a date from before they were written."""
    first_gone = from_line(exported.entries[-cut])
    assert isinstance(first_gone, Entry)
    left = exported.entries[:-cut]
    changes = {"entries": len(left), "checkpoints": 0, "at": parse_utc(first_gone.at)}
    return replace(exported, said=exported.said.model_copy(update=changes), entries=left, checkpoints=())


@pytest.mark.parametrize("later", [timedelta(0), timedelta(minutes=59), timedelta(hours=2)], ids=str)
def test_a_cut_end_behind_an_early_date_is_not_taken_for_whole(
    tmp_path: Path, site: Party, centre: Party, later: timedelta
) -> None:
    """The date is the owner's word, however short the time that it stands for: what the centre has seen is missed."""
    whole = len(site.lines())
    forged = backdated(site.exported(), 3)
    centre.time.now += later
    verdict = verify_files([forged, centre.exported()])
    assert f"entries {whole - 3} to {whole - 1} have not been seen" in verdict.unseen[0]
    assert (verdict.entries[site.name], verdict.shown[site.name]) == (whole - 3, whole)
    said = audit("verify", in_a_file(tmp_path, forged), in_a_file(tmp_path, centre.exported()))
    assert said.exit_code == 1
    assert "NOT SEEN" in said.stdout
    assert f"site:site-a: {whole - 3} entries of at least {whole};" in said.stdout
    assert "all of them" not in next(line for line in said.stdout.splitlines() if line.startswith(site.name))


def test_a_newer_file_shows_what_an_older_one_could_not(site: Party, centre: Party) -> None:
    early = site.exported()
    site.work(3)
    meet(site, centre)
    assert verify_files([early, centre.exported()]).unseen
    assert verify_files([early, centre.exported(), site.exported()]).unseen == ()
    forged = backdated(site.exported(), 3)
    assert verify_files([forged, centre.exported(), early]).unseen


def in_a_file(folder: Path, exported: Exported) -> Path:
    file = folder / f"{exported.said.log.replace(':', '-')}.audit"
    checkpoints = (c + b"\n" for c in exported.checkpoints)
    file.write_bytes(b"".join([encode(exported.said) + b"\n", *exported.entries, *checkpoints]))
    return file


def test_a_log_that_is_not_handed_in_is_missed(site: Party, centre: Party) -> None:
    assert verified(centre, site).absent == ("site:site-b",)
    renamed = site.exported()
    renamed = replace(renamed, said=renamed.said.model_copy(update={"log": "site:site-z"}))
    verdict = verify_files([renamed, centre.exported()])
    assert verdict.absent == ("site:site-a", "site:site-b")
    assert verdict.vouched["site:site-z"] == 0


def test_runs_may_go_on_while_an_auditor_collects_the_files(site: Party, centre: Party) -> None:
    early = centre.exported()
    centre.work(3)
    site.work(3)
    meet(site, centre)
    verdict = verify_files([early, site.exported()])
    assert verdict.tampering == ()
    assert f"entries {len(early.entries)} to " in verdict.unseen[0], "an honest file that is older, and says so"
    assert verdict.vouched["centre:demo"] <= verdict.entries["centre:demo"] == len(early.entries)


def test_a_whole_chain_made_anew_is_found_and_the_first_wrong_stretch_named(site: Party, centre: Party) -> None:
    lines = rehashed(site.lines(), 7, "train/99")
    assert lines[6] == site.lines()[6]
    forged = replace(with_lines(site.exported(), lines), checkpoints=())
    forged = replace(forged, said=forged.said.model_copy(update={"checkpoints": 0}))
    assert verify_files([forged]).tampering == ()
    found = only(verify_files([forged, centre.exported()]), "history_rewritten")
    assert found.log == "site:site-a"
    assert found.entry is not None
    assert found.entry <= 7
    assert "that centre:demo keeps does not fit" in found.message


def test_a_chain_made_anew_and_signed_with_a_new_key_is_found(tmp_path: Path, site: Party, centre: Party) -> None:
    forger = Party(tmp_path / "forged", site.name, site.time)
    forger.work(20)
    forger.notary.show()
    codes = {t.code for t in verified(forger, centre).tampering}
    assert codes == {"other_key", "history_rewritten"}
    forger.close()


def test_the_centre_cannot_show_two_histories_to_two_sites(tmp_path: Path, parties: list[Party]) -> None:
    centre, a, b = parties
    twin = centre.twin(tmp_path / "twin")
    centre.work(1, "run-told-to-a")
    twin.work(1, "run-told-to-b")
    meet(a, centre)
    meet(b, twin)
    verdict = verified(a, b)
    found = only(verdict, "two_histories")
    assert found.log == "centre:demo"
    assert "site:site-a" in found.message
    assert "site:site-b" in found.message
    # Whichever of the two logs the centre hands in, it does not fit what the other site was shown.
    for shown in (centre, twin):
        codes = {t.code for t in verified(a, b, shown).tampering if t.log == "centre:demo"}
        assert {"two_histories", "history_rewritten"} <= codes
    twin.close()


def test_two_histories_of_different_length_show_with_the_centres_log(tmp_path: Path, parties: list[Party]) -> None:
    centre, a, b = parties
    twin = centre.twin(tmp_path / "twin")
    centre.work(1)
    twin.work(3, "run-told-to-b")
    meet(a, centre)
    meet(b, twin)
    centre.work(5)
    found = only(verified(a, b, centre), "history_rewritten")
    assert "site:site-b keeps" in found.message
    twin.close()


def test_a_history_that_shrinks_or_differs_is_refused_on_the_line(tmp_path: Path, site: Party, centre: Party) -> None:
    twin = site.twin(tmp_path / "twin")
    site.work(2)
    meet(site, centre)
    twin.work(1)
    refused = centre.notary.take(site.name, twin.notary.show())
    assert refused is not None
    assert refused.code == "history_shrank"
    twin.work(1)
    refused = centre.notary.take(site.name, twin.notary.show())
    assert refused is not None
    assert refused.code == "history_differs"
    twin.close()


def test_one_site_cannot_speak_for_another(site: Party, centre: Party, parties: list[Party]) -> None:
    site.work(1)
    refused = centre.notary.take(parties[2].name, site.notary.show())
    assert refused is not None
    assert refused.code == "other_key"
    refused = centre.notary.take("site:newcomer", site.notary.show())
    assert refused is not None
    assert refused.code == "other_log"


def test_a_checkpoint_that_was_forged_counts_for_nothing(site: Party, centre: Party) -> None:
    exported = centre.exported()
    forged = [c.replace(b'"sig":"', b'"sig":"AAAA') for c in exported.checkpoints]
    verdict = verify_files([site.exported(), replace(exported, checkpoints=tuple(forged))])
    assert {t.code for t in verdict.tampering} == {"bad_checkpoint"}
    assert verdict.vouched[site.name] == 0


def test_lines_taken_out_of_a_file_show(site: Party) -> None:
    exported = site.exported()
    found = only(verify_files([replace(exported, checkpoints=exported.checkpoints[:-1])]), "file_damaged")
    assert "lines were removed or added" in found.message


def test_a_gateway_does_not_start_behind_a_log_whose_end_was_cut(site: Party) -> None:
    site.close()
    whole = site.file.read_bytes()
    site.file.write_bytes(b"".join(site.lines()[:-2]))
    with pytest.raises(AuditBroken, match="has signed that it had"):
        site.open()
    site.file.write_bytes(whole)
    site.open()


def test_what_cannot_be_written_down_does_not_happen(
    tmp_path: Path, site_at_work: GovernedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the audit log is full: the decision waits for room, and so does all that would follow from it."""
    asked = threading.Event()

    def full(*_: object) -> None:
        asked.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    site = site_at_work
    with monkeypatch.context() as disk:
        disk.setattr(site.audit_log, "write", full)
        site.runs.append(RunAtSite("run-1", site.around))
        site.offered = Offer("run-1", *site.signed_job("run-1"), site.fresh_token(), dry_run=False)
        site.runs[0].hear(site.offered)
        assert asked.wait(PATIENCE_S)
        with pytest.raises(queue.Empty):
            site.line.answers.get(timeout=0.2)
        assert (site.runtime.started, site.line.uploads) == ([], [])
    assert site.line.answers.get(timeout=PATIENCE_S).verdict == "allow", "with room again it goes on by itself"
    assert site.audited("run decided") == [""]


# ------------------------------------------------------------------------------------------ at a terminal


def audit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_auditor_at_a_terminal(tmp_path: Path, site: Party, centre: Party) -> None:
    files = {p.name: tmp_path / f"{p.name.replace(':', '-')}.audit" for p in (site, centre)}
    for party in (site, centre):
        done = audit("export", "--home", party.folder.parent, "--out", files[party.name])
        assert done.exit_code == 0, done.output
        twice = audit("export", "--home", party.folder.parent, "--out", files[party.name])
        assert twice.exit_code == 2
    fine = audit("verify", *files.values())
    assert fine.exit_code == 0, fine.stdout
    assert "site:site-a: 14 entries, all of them confirmed by another party's checkpoint" in fine.stdout
    mine = files[site.name]
    mine.write_bytes(mine.read_bytes().replace(b'"task":"train/2"', b'"task":"train/7"', 1))
    bad = audit("verify", *files.values(), "--json")
    assert bad.exit_code == 3
    assert json.loads(bad.stdout)["tampering"][0]["log"] == site.name
    assert audit("verify").exit_code == 2


def test_a_file_that_is_none_gets_one_clear_line(tmp_path: Path, site: Party) -> None:
    for wrong in (tmp_path / "nowhere", site.file, Path("/dev/null"), tmp_path):
        said = audit("verify", wrong)
        assert said.exit_code == 2, said.output
        assert len(said.stderr.splitlines()) == 1, said.stderr
        assert str(wrong) in said.stderr
    with pytest.raises(NoAudit, match="holds no audit log"):
        export_of(tmp_path, site.time())


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"\xff\n", b'{"kind":"AuditExport"}\n', b"[" * 99])
def test_what_is_no_export_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_export(data, "some.file")


def test_no_byte_behind_the_first_line_can_be_changed_or_removed_unseen(site: Party, centre: Party) -> None:
    data, other = export_of(site.folder, site.time()), centre.exported()
    begins = data.index(b"\n") + 1
    chance = random.Random(22)
    for _ in range(60):
        at = chance.randrange(begins, len(data))
        forged = bytearray(data)
        if chance.random() < 0.3:
            del forged[at : at + chance.randrange(1, 400)]
        else:
            forged[at] ^= 1 << chance.randrange(8)
        assert verify_files([read_export(bytes(forged), "forged"), other]).tampering, (at, bytes(forged[at : at + 20]))


def test_an_export_ends_where_its_first_line_says(site: Party) -> None:
    data = export_of(site.folder, site.time())
    again = read_export(data, "f")
    assert again.entries == tuple(site.lines())
    assert encode(again.said) + b"\n" == data.splitlines(keepends=True)[0]
