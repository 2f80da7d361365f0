"""What every `ArtifactStore` does, run against the embedded one and the fake."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fakes.stores import MemoryArtifacts
from msfl.orchestrator.store.folder import FolderArtifacts
from msfl.orchestrator.store.interface import ArtifactStore, GapInUpload, Size

RUN, KEY = "run-1", "train/1/site-a/up/result"
DATA = bytes(range(256)) * 10


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "folder":
        return FolderArtifacts(tmp_path / "artifacts")
    (tmp_path / "local").mkdir()
    return MemoryArtifacts(tmp_path / "local")


class TestArtifactStore:
    def test_parts_become_one_artifact(self, store: ArtifactStore) -> None:
        assert store.size(RUN, KEY) == Size(0, False)
        store.append(RUN, KEY, 0, DATA[:1000])
        store.append(RUN, KEY, 1000, DATA[1000:])
        assert store.size(RUN, KEY) == Size(len(DATA), False)
        store.finish(RUN, KEY, len(DATA))
        assert store.size(RUN, KEY) == Size(len(DATA), True)
        assert store.local(RUN, KEY).read_bytes() == DATA

    def test_nobody_reads_what_is_not_finished(self, store: ArtifactStore) -> None:
        store.append(RUN, KEY, 0, DATA)
        with pytest.raises(FileNotFoundError):
            store.local(RUN, KEY)

    def test_a_cut_upload_goes_on_where_it_was_cut(self, store: ArtifactStore) -> None:
        store.append(RUN, KEY, 0, DATA[:700])
        offset = store.size(RUN, KEY).bytes
        store.append(RUN, KEY, offset, DATA[offset:])
        store.finish(RUN, KEY, len(DATA))
        assert store.local(RUN, KEY).read_bytes() == DATA

    @pytest.mark.parametrize(("begin", "end"), [(0, 700), (0, 300), (400, 900), (699, 701)])
    def test_a_part_that_was_had_already_is_not_had_twice(self, store: ArtifactStore, begin: int, end: int) -> None:
        store.append(RUN, KEY, 0, DATA[:700])
        store.append(RUN, KEY, begin, DATA[begin:end])
        have = store.size(RUN, KEY).bytes
        assert have == max(700, end)
        store.finish(RUN, KEY, have)
        assert store.local(RUN, KEY).read_bytes() == DATA[:have]

    def test_a_gap_is_refused_and_says_how_much_is_here(self, store: ArtifactStore) -> None:
        store.append(RUN, KEY, 0, DATA[:10])
        with pytest.raises(GapInUpload) as gap:
            store.append(RUN, KEY, 11, b"x")
        assert gap.value.have == 10
        assert store.size(RUN, KEY) == Size(10, False)

    @pytest.mark.parametrize("total", [0, 9, 11])
    def test_an_artifact_of_another_length_is_not_finished(self, store: ArtifactStore, total: int) -> None:
        store.append(RUN, KEY, 0, DATA[:10])
        with pytest.raises(GapInUpload):
            store.finish(RUN, KEY, total)
        assert not store.size(RUN, KEY).complete

    def test_what_is_finished_does_not_change_any_more(self, store: ArtifactStore) -> None:
        store.append(RUN, KEY, 0, DATA)
        store.finish(RUN, KEY, len(DATA))
        store.append(RUN, KEY, 0, b"something else")
        store.append(RUN, KEY, len(DATA), b"more")
        store.finish(RUN, KEY, len(DATA) + 4)
        assert store.local(RUN, KEY).read_bytes() == DATA
        assert store.size(RUN, KEY) == Size(len(DATA), True)

    def test_what_takes_room_is_listed_by_its_key(self, store: ArtifactStore) -> None:
        assert store.kept(RUN) == frozenset()
        store.append(RUN, KEY, 0, DATA)
        store.append(RUN, "plan/ALL/down/plan", 0, DATA)
        store.append("run-2", "plan/ALL/down/weights", 0, DATA)
        store.finish(RUN, KEY, len(DATA))
        assert store.kept(RUN) == {KEY, "plan/ALL/down/plan"}
        store.remove(RUN, "plan/ALL/down/plan")
        assert store.kept(RUN) == {KEY}

    def test_an_empty_artifact_is_an_artifact(self, store: ArtifactStore) -> None:
        store.append(RUN, KEY, 0, b"")
        store.finish(RUN, KEY, 0)
        assert store.local(RUN, KEY).read_bytes() == b""

    def test_a_local_file_is_adopted(self, store: ArtifactStore, tmp_path: Path) -> None:
        (tmp_path / "made").write_bytes(DATA)
        store.adopt(RUN, {"export/model": tmp_path / "made"})
        assert not (tmp_path / "made").exists()
        assert store.local(RUN, "export/model").read_bytes() == DATA

    def test_adopting_again_after_a_crash_takes_the_newer_file(self, store: ArtifactStore, tmp_path: Path) -> None:
        for content in (b"first", b"second"):
            (tmp_path / "made").write_bytes(content)
            store.adopt(RUN, {"export/model": tmp_path / "made"})
        assert store.local(RUN, "export/model").read_bytes() == b"second"

    def test_what_is_removed_is_gone_and_removing_twice_is_no_error(self, store: ArtifactStore) -> None:
        store.append(RUN, KEY, 0, DATA)
        store.finish(RUN, KEY, len(DATA))
        store.remove(RUN, KEY)
        store.remove(RUN, KEY)
        assert store.size(RUN, KEY) == Size(0, False)
        with pytest.raises(FileNotFoundError):
            store.local(RUN, KEY)

    def test_an_unfinished_upload_can_be_removed(self, store: ArtifactStore) -> None:
        store.append(RUN, KEY, 0, DATA)
        store.remove(RUN, KEY)
        assert store.size(RUN, KEY) == Size(0, False)

    def test_runs_and_keys_do_not_mix(self, store: ArtifactStore) -> None:
        names = [(RUN, KEY), ("run-2", KEY), (RUN, "train/2/site-a/up/result"), (RUN, "candidates/b/down/local:a")]
        for i, (run, key) in enumerate(names):
            store.append(run, key, 0, bytes([i]))
            store.finish(run, key, 1)
        assert [store.local(run, key).read_bytes() for run, key in names] == [b"\0", b"\1", b"\2", b"\3"]

    @pytest.mark.parametrize(
        ("run", "key"),
        [
            (RUN, "../run-2/secret"),
            (RUN, "train/../../../etc/passwd"),
            (RUN, "/etc/passwd"),
            (RUN, "train//result"),
            (RUN, "train/"),
            (RUN, ""),
            (RUN, ".hidden"),
            (RUN, "a\0b"),
            ("..", KEY),
            ("", KEY),
            ("/tmp", KEY),
        ],
    )
    def test_a_key_that_leaves_the_run_is_refused(self, store: ArtifactStore, run: str, key: str) -> None:
        with pytest.raises(ValueError, match="artifact key"):
            store.append(run, key, 0, b"x")
        with pytest.raises(ValueError, match="artifact key"):
            store.local(run, key)
        with pytest.raises(ValueError, match="artifact key"):
            store.remove(run, key)


def test_uploads_and_artifacts_outlive_the_process(tmp_path: Path) -> None:
    first = FolderArtifacts(tmp_path)
    first.append(RUN, KEY, 0, DATA[:100])
    first.append(RUN, "plan/a/down/plan", 0, DATA)
    first.finish(RUN, "plan/a/down/plan", len(DATA))
    second = FolderArtifacts(tmp_path)
    assert second.size(RUN, KEY) == Size(100, False)
    assert second.local(RUN, "plan/a/down/plan").read_bytes() == DATA


def test_a_part_of_one_artifact_is_not_another_artifact(tmp_path: Path) -> None:
    """The folder keeps what grows beside what is whole; no key may name it."""
    store = FolderArtifacts(tmp_path)
    store.append(RUN, "export/model", 0, DATA)
    with pytest.raises(FileNotFoundError):
        store.local(RUN, "export/model.part")
    with pytest.raises(ValueError, match="artifact key"):
        store.local(RUN, "export/.model.part")


def test_a_file_of_another_disk_is_adopted(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one file system here")
    with TemporaryDirectory(dir=memory) as elsewhere:
        made = Path(elsewhere) / "made"
        made.write_bytes(DATA)
        store = FolderArtifacts(tmp_path)
        store.adopt(RUN, {"export/model": made})
        assert not made.exists()
    assert store.local(RUN, "export/model").read_bytes() == DATA
    assert [f.name for f in (tmp_path / RUN).iterdir()] == ["export~model"]
