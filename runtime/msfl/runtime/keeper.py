"""The keeper of one contained process: a small host process that owns it, so that its host may be killed and come back.

    process ── F/link.sock ──▶ keeper ── <F>.door.sock ──▶ host     the keeper dials, and dials again when it is gone

    the process's Hello          kept, and said to every host that opens, with the id of the task it was given last
    its Result or Failed         kept until it is given another task: a host that comes back hears it again
    Progress, Alive              go through; while there is no host they are dropped
    Task, Stop                   go through whole or not at all, whenever the host dies

It ends the process, and everything that this ever started, when

    the host that started it is gone and no other has come within `orphan_s`
    its folder is gone, or another was started in it
    it closes its link, or says what is no frame, and does not end
    its wall time is over, it has written more than it may, or (the kernel does that) it took too much memory
    the keeper itself is ended: bubblewrap and `launcher` die with their parent

What it took too much of is told to the host as `Failed(resources_exceeded)`, and lies in `<F>.excess` (`excess_of`).
The log passes through here and has an end. Whatever the process starts becomes the keeper's child when its own parent
ends (subreaper), so nothing gets away; the keeper ends when all of it has ended, with the exit status of the process.

Started by a runtime (`start`) as `python -P -m msfl.runtime.keeper SPEC -- command…`, its standard error the log; SPEC
is `Spec` as JSON. On the descriptor `told` it says one line: the pids of the command and, of a sandbox, of the first
one inside. Without a command it keeps what somebody else starts, a container: it says its line when its door is open,
and hears on `hear` the pid of the container's first process, with which the kernel ends all others.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from msfl.protos import unix_sockets
from msfl.protos.tasklink import MAX_FRAME_BYTES, BrokenFrame, Failed, Frame, Hello, Result, Task, decode, encode
from msfl.runtime import cgroups
from msfl.runtime.bounded_log import BoundedLog
from msfl.runtime.frame_line import LENGTH, FrameLine
from msfl.runtime.processes import children, family, kill
from msfl.runtime.quota import Quota, measure

EXCEEDED = "resources_exceeded"
_PR_SET_CHILD_SUBREAPER = 36
_MOST_WAITING = 2 * MAX_FRAME_BYTES  # of bytes for a host that does not read; then the process waits, too
_DIAL_EVERY_S = 0.1
_LOOK_EVERY_S = 1.0
_LAST_WORDS_S = 2.0
_HUNG_UP_S = 10.0  # for an interpreter to end


@dataclass(frozen=True)
class Spec:
    """What a runtime tells a keeper. `written`: the folders that the process can write to; `groups`: the control groups
    that it is put into; `sandbox`: the command is bubblewrap, which takes more options; `syscalls`: its filter."""

    folder: str
    door: str
    environment: dict[str, str]
    host: int
    told: int
    written: list[str]
    groups: list[str]
    orphan_s: float
    wall_time_s: float | None
    log_bytes: int
    output_bytes: int
    output_files: int
    sandbox: bool = False
    syscalls: str = ""
    hear: int = -1

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def door(folder: Path) -> Path:
    """Where the host of the process in `folder` listens: beside it, where the process cannot reach."""
    return folder.with_name(folder.name + ".door.sock")


def excess_of(folder: Path) -> str:
    """What the process in `folder` was ended for, in one sentence; empty when it was not. Said once."""
    said = folder.with_name(folder.name + ".excess")
    try:
        words = said.read_text()
    except FileNotFoundError:
        return ""
    said.unlink()
    return words


def start(spec: Spec, command: Sequence[str], log: int) -> subprocess.Popen[bytes]:
    """A keeper in a session of its own. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-P", "-B", "-m", __name__, spec.to_json(), "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        start_new_session=True,
        pass_fds=tuple(fd for fd in (spec.told, spec.hear) if fd >= 0),
    )


def main() -> None:
    arguments = sys.argv[1:]
    spec, command = Spec(**json.loads(arguments[0])), arguments[2:]
    with Keeper(spec) as keeper:
        status = keeper.keep(command) if command else keeper.guard()
    if status < 0:  # As the process ended: by this signal.
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


class Keeper:
    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._folder = Path(spec.folder)
        self._log = BoundedLog(sys.stderr.fileno(), spec.log_bytes)
        self._host: FrameLine | None = None
        self._process: FrameLine | None = None
        self._greeting = b""
        self._task = ""
        self._answer = b""
        began = time.monotonic()
        self._alone_since: float | None = None
        self._hung_up_since: float | None = None
        self._dial_at = self._look_at = began
        self._ends_at = None if spec.wall_time_s is None else began + spec.wall_time_s
        self._child: subprocess.Popen[bytes] | None = None
        self._guarded = 0
        self._host_pid = _watch(spec.host) if os.getppid() == spec.host else None

    def __enter__(self) -> Keeper:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        at = self._folder / "link.sock"
        at.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        unix_sockets.bind(self._listener, at)
        self._listener.listen(1)
        self._place = _identity(at)
        return self

    def __exit__(self, *_: object) -> None:
        self._end_everything()
        for line in (self._process, self._host):
            if line is not None:
                line.connection.close()
        self._listener.close()
        self._log.close()

    def keep(self, command: Sequence[str]) -> int:
        """Start it and see it through; its exit status, or minus the signal that ended it."""
        child = self._child = self._start(command)
        self._see_through(os.pidfd_open(child.pid))
        return int(child.returncode)

    def guard(self) -> int:
        """The same for what somebody else starts; 0."""
        self._tell([])
        with open(self._spec.hear) as hearing:
            pid = int(hearing.readline() or 0)
        if pid and (ended := _watch(pid)) is not None:
            self._guarded = pid
            self._see_through(ended)
        return 0

    def _see_through(self, ended: int) -> None:
        excess = ""
        while not excess and not self._turn(ended):
            excess = self._excess(time.monotonic())
        if not excess and self._ran_out_of_memory():
            excess = "it needs more memory than it may have"
        if excess:
            said = self._folder.with_name(self._folder.name + ".excess")
            with contextlib.suppress(OSError):  # On a full disk it is only not said.
                said.write_text(excess)  # First, so that whoever sees its end finds it.
            with contextlib.suppress(ProcessLookupError):  # It was just ending by itself.
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            self._log.note(f"msfl ended this process: {excess}")
            if self._host is not None and self._task and not self._answer:
                self._host.say(encode(Failed(self._task, EXCEEDED, excess)))
        self._end_everything()
        self._last_words()
        os.close(ended)

    # ------------------------------------------------------------------- start

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        if not self._spec.sandbox:
            child = self._spawn(command, ())
            cgroups.join(self._groups, child.pid)
            self._tell([child.pid])
            return child
        said, saying = os.pipe()
        blocking, release = os.pipe()
        given = [saying, blocking]
        options = ["--info-fd", str(saying), "--block-fd", str(blocking)]
        if self._spec.syscalls:
            filters = os.memfd_create("syscalls")
            os.write(filters, base64.b64decode(self._spec.syscalls))
            os.lseek(filters, 0, os.SEEK_SET)
            given.append(filters)
            options += ["--seccomp", str(filters)]
        child = self._spawn([command[0], *options, *command[1:]], given)
        for descriptor in given:
            os.close(descriptor)
        inside = self._first_inside(said, child)
        os.close(said)
        # Both stand still and have no children yet: whatever they start is in the group from its first moment.
        for pid in (child.pid, *inside):
            with contextlib.suppress(ProcessLookupError):  # It has ended already, which is seen soon.
                cgroups.join(self._groups, pid)
        self._tell([child.pid, *inside])
        with contextlib.suppress(BrokenPipeError):
            os.write(release, b"1")
        os.close(release)
        return child

    def _spawn(self, command: Sequence[str], given: Sequence[int]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log.source,
            stderr=self._log.source,
            cwd=self._folder,
            env={**self._spec.environment, **({} if self._spec.sandbox else {"MSFL_KEEPER": str(os.getpid())})},
            pass_fds=given,
        )

    def _first_inside(self, said: int, child: subprocess.Popen[bytes]) -> list[int]:
        """What bubblewrap says of the sandbox it makes. It is heard out to the end: closing the pipe before would end
        it in the middle of its sentence. Was it killed in there, its half-made child may wait for it for ever with the
        pipe in its hand; it is ended with everything else."""
        words = b""
        waiting = select.poll()
        waiting.register(said, select.POLLIN)
        while True:
            if not waiting.poll(200):
                if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                return []
            if not (more := os.read(said, 4096)):
                break
            words += more
        return [json.loads(words)["child-pid"]] if words.rstrip().endswith(b"}") else []

    def _tell(self, pids: list[int]) -> None:
        os.write(self._spec.told, json.dumps(pids).encode() + b"\n")
        os.close(self._spec.told)
        self._log.close_source()

    @property
    def _groups(self) -> tuple[Path, ...]:
        return tuple(map(Path, self._spec.groups))

    # -------------------------------------------------------------------- turns

    def _turn(self, ended: int) -> bool:
        """Wait for something to happen and let it; True when the process has ended."""
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        if self._log.open:
            waiting.register(self._log.reader, select.POLLIN)
        if self._process is None:
            waiting.register(self._listener, select.POLLIN)
        if self._host_pid is not None:
            waiting.register(self._host_pid, select.POLLIN)
        for line, other in ((self._process, self._host), (self._host, self._process)):
            if line is not None and line.open:
                full = other is not None and len(other.waiting) > _MOST_WAITING
                waiting.register(
                    line.connection, (0 if full else select.POLLIN) | (select.POLLOUT if line.waiting else 0)
                )
        happened = {fd for fd, _ in waiting.poll(self._patience_ms())}
        if self._log.reader in happened:
            self._log.take()
        if self._host_pid in happened and self._host_pid is not None:
            os.close(self._host_pid)
            self._host_pid = None
        if self._process is None and self._listener.fileno() in happened:
            self._process = FrameLine(self._listener.accept()[0])
        for line in (self._process, self._host):
            if line is not None and line.connection.fileno() in happened:
                line.flush()
        if self._process is not None and self._process.connection.fileno() in happened:
            self._hear_process()
        if self._host is not None and self._host.connection.fileno() in happened:
            self._hear_host()
        self._dial()
        return ended in happened

    def _patience_ms(self) -> float:
        until = [self._look_at]
        if self._greeting and self._host is None:
            until.append(self._dial_at)
        if self._ends_at is not None:
            until.append(self._ends_at)
        if self._alone_since is not None:
            until.append(self._alone_since + self._spec.orphan_s)
        return 1000 * min(max(min(until) - time.monotonic(), 0.0), _LOOK_EVERY_S)

    def _hear_process(self) -> None:
        assert self._process is not None
        for frame in self._process.hear():
            match _read(frame):
                case Hello() as hello if not self._greeting:
                    self._greeting = encode(replace(hello, task=""))
                    continue
                case Result() | Failed():
                    self._answer = frame
                case _ if not self._greeting:
                    self._greeting = frame  # The host will know what to think of it.
                    continue
                case _:
                    pass
            if self._host is not None:
                self._host.say(frame)
        if not self._process.open and self._host is not None:
            self._hang_up()

    def _hear_host(self) -> None:
        assert self._host is not None
        for frame in self._host.hear():
            match _read(frame):
                case Task(task_id=task_id):
                    self._task, self._answer = task_id, b""
                case _:
                    pass
            if self._process is not None:
                self._process.say(frame)
        if not self._host.open:
            self._hang_up()

    def _hang_up(self) -> None:
        """The host is gone, or nothing more comes to it."""
        assert self._host is not None
        self._flush_host(_LAST_WORDS_S)
        self._host.connection.close()
        self._host = None

    def _dial(self) -> None:
        now = time.monotonic()
        if self._host is not None or not self._greeting or now < self._dial_at:
            return
        if self._process is None or not self._process.open:
            return
        self._dial_at = now + _DIAL_EVERY_S
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            unix_sockets.connect(connection, Path(self._spec.door))
        except OSError:  # Nobody listens, yet.
            connection.close()
            return
        self._host = FrameLine(connection)
        said = _read(self._greeting)
        self._host.say(encode(replace(said, task=self._task)) if isinstance(said, Hello) else self._greeting)
        self._host.say(self._answer)

    # ------------------------------------------------------------------- limits

    def _excess(self, now: float) -> str:
        """Why it is to be ended now; empty: it may go on."""
        if self._host_pid is not None or self._host is not None:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        if self._alone_since is not None and now - self._alone_since >= self._spec.orphan_s:
            return "nobody watched it any more"
        if _identity(self._folder / "link.sock") != self._place:
            # Whoever dialled on would be taken for the other.
            return "its folder is gone, or another has its place"
        if self._ends_at is not None and now >= self._ends_at:
            return "it has had all its time"
        if self._process is not None and not self._process.open:
            self._hung_up_since = self._hung_up_since or now
            if now - self._hung_up_since >= _HUNG_UP_S:
                return "it closed its link and did not end"
        if now < self._look_at:
            return ""
        folders = [Path(folder) for folder in self._spec.written]
        quota = Quota(self._spec.output_bytes, self._spec.output_files)
        excess = measure(folders, quota, self._inside()).excess(quota)
        # A folder with very many files takes its time to look through: never more than a tenth of a processor.
        self._look_at = now + max(_LOOK_EVERY_S, 10 * (time.monotonic() - now))
        return excess

    def _inside(self) -> list[int]:
        """The process and all that it started; where there is a group, without looking through the whole machine."""
        for folder in self._groups:
            with contextlib.suppress(OSError):
                return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
        return [p.pid for p in family(self._guarded or os.getpid())]

    def _ran_out_of_memory(self) -> bool:
        for folder in self._groups:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    counts = dict(line.split() for line in (folder / name).read_text().splitlines())
                    if int(counts.get("oom_kill", "0")) > 0:
                        return True
        return False

    # ---------------------------------------------------------------------- end

    def _end_everything(self) -> None:
        """Every child of ours, and those that become ours when their parents end, until there is none."""
        while True:
            for child in children(os.getpid()):
                kill(child.pid, signal.SIGKILL)
            if self._child is not None and self._child.poll() is None:
                self._child.wait()
                continue
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                break
            time.sleep(0.002)
        cgroups.remove(self._groups)

    def _last_words(self) -> None:
        """What it had said before it ended reaches host and log."""
        self._log.take_rest()
        while self._process is not None and self._process.open and self._host is not None:
            self._hear_process()
        if self._host is not None:
            self._flush_host(_LAST_WORDS_S)

    def _flush_host(self, patience_s: float) -> None:
        assert self._host is not None
        give_up = time.monotonic() + patience_s
        writing = select.poll()
        writing.register(self._host.connection, select.POLLOUT)
        while self._host.waiting and time.monotonic() < give_up:
            writing.poll(100)
            self._host.flush()


def _identity(path: Path) -> tuple[int, int] | None:
    """What has this name; not given to anything else while a socket that was bound to it is open."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _watch(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _read(frame: bytes) -> Frame | None:
    try:
        return decode(frame[LENGTH.size :])
    except BrokenFrame:
        return None


if __name__ == "__main__":
    main()
