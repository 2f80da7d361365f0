"""The aggregator as the orchestrator holds it: a contained process of the same release, given sealed files and keys.

The orchestrator never opens what sites send. It lays the sealed files into the aggregator's inbox, asks for one verb
at a time, and takes sealed files out of the outbox. The keys to them come from the keyring, sealed to a key which the
aggregator made at its start, so the orchestrator only carries a box that it cannot open.
"""

from __future__ import annotations

import base64
import errno
import itertools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from msfl.policies.documents import Isolation
from msfl.protos.tasklink import Progress, Result, Task
from msfl.runtime.collect import collect, take_over
from msfl.runtime.hosted import HostedProcess
from msfl.runtime.interface import Runtime, StartOrder
from msfl.runtime.removal import remove_tree

JsonObject: TypeAlias = dict[str, Any]
MAX_OUTPUT_BYTES = 4 << 30


class HandOver(Protocol):
    """What the orchestrator asks of the keyring: the run's site keys, sealed to the aggregator."""

    def hand_over(
        self,
        run_id: str,
        wrapped: Mapping[str, bytes],
        aggregator_public: bytes,
        earlier: str = "",
        min_sites: int = 0,
    ) -> bytes: ...


@dataclass(frozen=True)
class CentralTask:
    task_id: str
    verb: str
    round: int
    config: JsonObject
    document: JsonObject
    files: Mapping[str, Path]


@dataclass(frozen=True)
class CentralResult:
    document: JsonObject
    files: Mapping[str, Path]  # name as the aggregator gave it → a private file, to be adopted by the artifact store


class Aggregator:
    """One run's aggregator process. Raises what `HostedProcess` raises."""

    def __init__(
        self,
        process: HostedProcess,
        folder: Path,
        run_id: str,
        config: JsonObject,
        keyring: HandOver,
        *,
        min_sites: int,
        read_only_inbox: bool,
    ) -> None:
        self._process = process
        self._folder = folder
        self._run_id = run_id
        self._config = config
        self._keyring = keyring
        self._min_sites = min_sites
        self._read_only_inbox = read_only_inbox
        self._names = itertools.count()

    @classmethod
    def start(
        cls, runtime: Runtime, order: StartOrder, *, run_id: str, config: JsonObject, keyring: HandOver, min_sites: int
    ) -> Aggregator:
        """`order.folder` is all that the process can see; what is taken from it goes to a folder beside it.
        `min_sites`: of the job; the sites' keys come with this number or not at all."""
        order.folder.mkdir(parents=True, exist_ok=True)
        if (left := runtime.recover(order.folder)) is not None:  # It dies with its orchestrator; should it not have.
            runtime.stop(left, 0.0)
        for box in ("inbox", "outbox"):
            remove_tree(order.folder / box)  # What an aggregator before it was about when it was killed.
        contained = runtime.protections().isolation > Isolation.NONE
        process = HostedProcess.start(runtime, order)
        return cls(process, order.folder, run_id, config, keyring, min_sites=min_sites, read_only_inbox=contained)

    def open(self, wrapped: Mapping[str, bytes], earlier: str) -> None:
        """Hand over the keys of these sites, all there are, and of an earlier run; again whenever there are more.

        Raises BadRunSecret, KeyringDown.
        """
        public = base64.b64decode(self._process.hello.public_key)
        sealed = self._keyring.hand_over(self._run_id, wrapped, public, earlier, self._min_sites)
        document = {"run_id": self._run_id, "sealed_keys": base64.b64encode(sealed).decode()}
        self.do(CentralTask("open", "open", 0, self._config, document, {}))

    def do(self, task: CentralTask) -> CentralResult:
        inbox = self._folder / "inbox"
        files = {}
        for name, path in task.files.items():
            files[name] = f"{next(self._names):06d}.sealed"
            self._lend(path, inbox / files[name])
        try:
            result = self._process.call(
                Task(task.task_id, task.verb, task.round, task.config, task.document, files), _ignore
            )
        finally:
            for name in files.values():
                (inbox / name).unlink(missing_ok=True)
        return CentralResult(document=result.document, files=self._take(result, sealed=task.verb != "export"))

    def _lend(self, stored: Path, target: Path) -> None:
        """What is stored stays as it came, whatever the contained process does: in a sandbox the inbox cannot be
        written, so a second name for the same file will do; without one it gets a copy."""
        if self._read_only_inbox:
            try:
                return os.link(stored, target)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                    raise
        shutil.copyfile(stored, target)

    def _take(self, result: Result, *, sealed: bool) -> dict[str, Path]:
        taken = self._folder.parent / "taken"
        taken.mkdir(mode=0o700, exist_ok=True)
        files = {}
        for name, bare in result.files.items():
            files[name] = taken / bare
            files[name].unlink(missing_ok=True)  # of before a crash
            if sealed:
                take_over(self._folder / "outbox", bare, files[name], MAX_OUTPUT_BYTES)
            else:
                collect(self._folder / "outbox", bare, files[name], MAX_OUTPUT_BYTES)
                (self._folder / "outbox" / bare).unlink(missing_ok=True)
        return files

    def stop(self) -> None:
        self._process.stop()


def _ignore(progress: Progress) -> None:
    del progress  # Central steps take moments; what people watch are the sites.
