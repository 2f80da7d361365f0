"""The embedded runtime, with small modules that stand for a release. Real processes, so marked system."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from msfl.policies.documents import Isolation
from msfl.policies.protections import Protection
from msfl.policies.refusals import Code, Refusal, Refused
from msfl.protos.tasklink import Hello, encode
from msfl.runtime import process
from msfl.runtime.hosted import HostedProcess
from msfl.runtime.interface import Exit, Handle, ImageLayer, Limits, StartOrder
from msfl.runtime.process import ProcessRuntime

pytestmark = [pytest.mark.system, pytest.mark.slow]


@dataclass(frozen=True)
class ReadyImage:
    """An image whose environment is as it should be, or for which `refusal` speaks."""

    root: Path
    digest: str = "sha256:" + "0" * 64
    entrypoint: tuple[str, ...] = ("python", "-m", "release")
    refusal: Refusal | None = None
    config: Path = Path("config")
    config_digest: str = "sha256:" + "0" * 64
    layers: tuple[ImageLayer, ...] = ()
    self_contained: bool = False
    packages: frozenset[str] = frozenset({"numpy"})

    def check_environment(self, site_packages: Path) -> Refusal | None:
        del site_packages
        return self.refusal


@pytest.fixture(scope="module")
def runtimes() -> dict[str, ProcessRuntime]:
    return {"sandbox": ProcessRuntime(), "none": ProcessRuntime(sandbox="none")}


@pytest.fixture(params=["sandbox", "none"])
def runtime(request: pytest.FixtureRequest, runtimes: dict[str, ProcessRuntime]) -> ProcessRuntime:
    chosen = runtimes[request.param]
    if chosen.protections().isolation.value != request.param:
        pytest.skip(chosen.protections().detail[0])
    return chosen


@pytest.fixture
def sandboxed(runtimes: dict[str, ProcessRuntime]) -> ProcessRuntime:
    if runtimes["sandbox"].protections().isolation is not Isolation.SANDBOX:
        pytest.skip(runtimes["sandbox"].protections().detail[0])
    return runtimes["sandbox"]


def order(tmp_path: Path, code: str, limits: Limits | None = None, **image: Any) -> StartOrder:
    """F, data and an image whose only module is `code`."""
    for name in ("image", "data", "F", "F/outbox", "F/scratch"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "image" / "release.py").write_text(_ARGUMENTS + textwrap.dedent(code))
    (tmp_path / "data" / "case").write_text("patient")
    return StartOrder(
        run_id="run-1",
        image=ReadyImage(tmp_path / "image", **image),
        release="model:1.0.0",
        role="worker",
        folder=tmp_path / "F",
        data=tmp_path / "data",
        site="site-a",
        log=tmp_path / "logs" / "worker.log",
        limits=limits or Limits(),
    )


_ARGUMENTS = """
import json, os, pathlib, sys, time
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
F, D = pathlib.Path(given["--folder"]), pathlib.Path(given["--data"])
def tell(**facts): (F / "outbox" / "facts").write_text(json.dumps(facts))
def attempt(act):
    try: return repr(act())
    except Exception as error: return type(error).__name__
"""


def run(runtime: ProcessRuntime, what: StartOrder) -> tuple[Exit, dict[str, Any]]:
    handle = runtime.start(what)
    try:
        ended = until(lambda: runtime.poll(handle))
    finally:
        runtime.stop(handle, 0)
    facts = what.folder / "outbox" / "facts"
    return ended, json.loads(facts.read_text()) if facts.exists() else {}


def until(happens: Any, patience_s: float = 20.0) -> Any:
    give_up = time.monotonic() + patience_s
    while not (result := happens()):
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.02)
    return result


def alive(marker: str) -> list[int]:
    """Processes of this machine with `marker` in their command line or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if not zombie and marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_it_runs_the_images_module_with_its_arguments(runtime: ProcessRuntime, tmp_path: Path) -> None:
    os.environ["HOSPITAL_SECRET"] = "x"
    ended, facts = run(
        runtime,
        order(
            tmp_path,
            """
            print("a line", flush=True)
            tell(given=given, case=(D / "case").read_text(), environment=dict(os.environ), path=sys.path, name=__name__)
            """,
        ),
    )
    del os.environ["HOSPITAL_SECRET"]
    assert ended == Exit(0, None), (tmp_path / "logs" / "worker.log").read_text()
    assert facts["given"]["--role"] == "worker"
    assert facts["given"]["--site"] == "site-a"
    assert facts["given"]["--release"] == "model:1.0.0"
    assert facts["case"] == "patient"
    assert facts["name"] == "__main__"
    assert "HOSPITAL_SECRET" not in facts["environment"]
    assert facts["environment"]["GOMP_SPINCOUNT"] == "0"
    assert facts["path"][0].endswith("image")
    assert facts["path"][-1].endswith("site-packages")
    assert not any("registry" in entry for entry in facts["path"]), "the host's .pth files were processed"
    log = tmp_path / "logs" / "worker.log"
    assert log.read_text() == "a line\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_it_can_import_what_is_installed(runtime: ProcessRuntime, tmp_path: Path) -> None:
    ended, facts = run(runtime, order(tmp_path, "import numpy\ntell(one=float(numpy.ones(3).mean()))"))
    assert ended == Exit(0, None)
    assert facts == {"one": 1.0}


def test_its_socket_reaches_the_host(runtime: ProcessRuntime, tmp_path: Path) -> None:
    what = order(
        tmp_path,
        "import socket\ns = socket.socket(socket.AF_UNIX); s.connect(str(F / 'link.sock'))\n"
        f"s.sendall({encode(Hello('m:1'))!r}); s.recv(1)",
    )
    hosted = HostedProcess.start(runtime, what, patience_s=20)
    assert hosted.hello == Hello("m:1")
    hosted.stop()


def test_an_environment_that_differs_starts_nothing(runtime: ProcessRuntime, tmp_path: Path) -> None:
    refusal = Refusal(Code.ENVIRONMENT_DIFFERS, "numpy is 1.0, not 2.0", {"distributions": "numpy"})
    with pytest.raises(Refused) as refused:
        runtime.start(order(tmp_path, "tell()", refusal=refusal))
    assert refused.value.refusal == refusal
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("entrypoint", [("sh", "-c", "x"), ("python", "release.py"), ("python", "-m", "a b"), ()])
def test_only_a_python_module_is_an_entry_point(
    runtime: ProcessRuntime, tmp_path: Path, entrypoint: tuple[str, ...]
) -> None:
    with pytest.raises(Refused, match="image_broken"):
        runtime.start(order(tmp_path, "", entrypoint=entrypoint))


def test_a_crash_is_seen_with_its_status_and_log(runtime: ProcessRuntime, tmp_path: Path) -> None:
    ended, _ = run(runtime, order(tmp_path, "raise RuntimeError('bad day')"))
    assert ended == Exit(1, None)
    assert "bad day" in (tmp_path / "logs" / "worker.log").read_text()


def test_stop_asks_first(runtime: ProcessRuntime, tmp_path: Path) -> None:
    what = order(
        tmp_path,
        """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: (tell(asked=True), sys.exit(7)))
        (F / "scratch" / "up").touch()
        time.sleep(60)
        """,
    )
    handle = runtime.start(what)
    until((what.folder / "scratch" / "up").exists)
    assert runtime.stop(handle, 10) == Exit(7, None)
    assert json.loads((what.folder / "outbox" / "facts").read_text()) == {"asked": True}
    assert runtime.stop(handle, 10) == Exit(7, None)


_STUBBORN = """
    import signal, subprocess
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60) # MARKER"
    for own in (False, True):
        subprocess.Popen([sys.executable, "-I", "-S", "-c", child], process_group=0 if own else None)
    (F / "scratch" / "up").touch()
    time.sleep(60)
"""


def test_stop_leaves_nothing_behind(runtime: ProcessRuntime, tmp_path: Path) -> None:
    marker = f"stubborn-{os.getpid()}-{time.monotonic_ns()}"
    what = order(tmp_path, _STUBBORN.replace("MARKER", marker))
    handle = runtime.start(what)
    until((what.folder / "scratch" / "up").exists)
    until(lambda: len(alive(marker)) == 2)
    assert runtime.stop(handle, 0.2) is not None
    assert alive(marker) == []
    assert not (tmp_path / "F.process.json").exists()


def test_a_crashed_leader_takes_its_children_along(runtime: ProcessRuntime, tmp_path: Path) -> None:
    marker = f"orphans-{os.getpid()}-{time.monotonic_ns()}"
    code = _STUBBORN.replace("MARKER", marker).replace("time.sleep(60)\n", "os._exit(3)\n")
    ended, _ = run(runtime, order(tmp_path, code.replace("time.sleep(60) #", "time.sleep(61) #")))
    assert ended == Exit(3, None)
    assert alive(marker) == []


def test_a_start_from_a_short_lived_thread_outlives_that_thread(runtime: ProcessRuntime, tmp_path: Path) -> None:
    handles: list[Handle] = []
    what = order(tmp_path, "(F / 'scratch' / 'up').touch(); time.sleep(60)")
    starter = threading.Thread(target=lambda: handles.append(runtime.start(what)))
    starter.start()
    starter.join()
    until((what.folder / "scratch" / "up").exists)
    time.sleep(0.1)
    assert runtime.poll(handles[0]) is None
    runtime.stop(handles[0], 0)


@pytest.mark.parametrize("sandbox", ["auto", "none"])
def test_when_the_host_is_killed_the_worker_dies(tmp_path: Path, sandbox: str) -> None:
    marker = f"F{os.getpid()}-{time.monotonic_ns()}"
    order(tmp_path, "")
    (tmp_path / marker).mkdir()
    (tmp_path / marker / "scratch").mkdir()
    (tmp_path / "image" / "release.py").write_text(
        _ARGUMENTS + f"import subprocess\n(F / 'scratch' / 'up').touch(); time.sleep(60) # {marker}"
    )
    host = f"""
import dataclasses, sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from msfl.runtime.interface import StartOrder
from msfl.runtime.process import ProcessRuntime
class Image:
    root, digest, entrypoint = Path({str(tmp_path / "image")!r}), "", ("python", "-m", "release")
    packages = ()
    def check_environment(self, site_packages): return None
here = Path({str(tmp_path)!r})
ProcessRuntime(sandbox={sandbox!r}).start(
    StartOrder("r", Image(), "m:1", "worker", here / {marker!r}, here / "data", "s", here / "log"))
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", host])
    try:
        until((tmp_path / marker / "scratch" / "up").exists)
        note = json.loads((tmp_path / f"{marker}.process.json").read_text())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not alive(f"{tmp_path}"))
    fresh = ProcessRuntime(sandbox="none")
    until(lambda: fresh.recover(tmp_path / marker) is None)
    assert not (tmp_path / f"{marker}.process.json").exists()
    assert note["role"] == "worker"


def test_recover_finds_what_still_runs(runtime: ProcessRuntime, tmp_path: Path) -> None:
    what = order(tmp_path, "(F / 'scratch' / 'up').touch(); time.sleep(60)")
    handle = runtime.start(what)
    until((what.folder / "scratch" / "up").exists)
    other = ProcessRuntime(sandbox="none" if runtime.protections().isolation is Isolation.NONE else "auto")
    found = other.recover(what.folder)
    assert found == handle
    assert other.poll(handle) is None
    other.stop(found, 0)
    assert runtime.poll(handle) == Exit(None, signal.SIGKILL)
    assert other.recover(what.folder) is None


def test_limits_hold(runtime: ProcessRuntime, tmp_path: Path) -> None:
    _, facts = run(
        runtime,
        order(
            tmp_path,
            """
            import resource
            tell(core=resource.getrlimit(resource.RLIMIT_CORE), files=resource.getrlimit(resource.RLIMIT_NOFILE),
                 much=attempt(lambda: len(bytearray(1 << 30))), threads=os.environ["OMP_NUM_THREADS"])
            """,
            Limits(memory_bytes=256 << 20, open_files=128, threads=2),
        ),
    )
    assert facts == {"core": [0, 0], "files": [128, 128], "much": "MemoryError", "threads": "2"}


def test_the_walls_of_the_sandbox(sandboxed: ProcessRuntime, tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_text("private")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        ended, facts = run(
            sandboxed,
            order(
                tmp_path,
                f"""
                import socket, ctypes
                def read(path): return lambda: open(path).read()
                def write(path): return lambda: open(path, "w").write("x")
                tell(
                    tcp=attempt(lambda: socket.create_connection(("127.0.0.1", {port}), 2)),
                    write_data=attempt(write(D / "case")), new_data=attempt(write(D / "new")),
                    write_image=attempt(write("/msfl/image/release.py")), write_root=attempt(write("/x")),
                    write_python=attempt(write(sys.prefix + "/x")), write_dev=attempt(write("/dev/x")),
                    host_key=attempt(read({str(tmp_path / "gateway.key")!r})), passwd=attempt(read("/etc/passwd")),
                    home=[str(p) for p in pathlib.Path("/root").rglob("*") if not str(p).startswith(sys.base_prefix)
                          and not sys.base_prefix.startswith(str(p))] if os.path.exists("/root") else [],
                    root=sorted(os.listdir("/")), run=sorted(os.listdir("/msfl")),
                    pids=sorted(int(p) for p in os.listdir("/proc") if p.isdigit()), me=os.getpid(),
                    host=os.uname().nodename, uid=os.getuid(),
                    open=sorted(int(f) for f in os.listdir("/proc/self/fd")),
                    status=[l for l in open("/proc/self/status") if l.startswith(("CapEff", "CapBnd", "NoNewPrivs"))],
                    kill=attempt(lambda: os.kill({os.getpid()}, 0)),
                    mount=ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, None),
                    link=attempt(lambda: os.link(D / "case", F / "outbox" / "case")),
                    shell=attempt(lambda: os.execv("/bin/sh", ["sh"])),
                )
                """,
            ),
        )
    assert ended == Exit(0, None), (tmp_path / "logs" / "worker.log").read_text()
    assert facts["tcp"] in ("ConnectionRefusedError", "OSError")
    for name in ("write_data", "new_data", "write_image", "write_root", "write_python", "write_dev"):
        assert facts[name] == "OSError", name
    assert facts["host_key"] == facts["passwd"] == facts["shell"] == "FileNotFoundError"
    assert facts["home"] == []
    assert facts["run"] == ["data", "image", "launcher.py", "run", "site-packages"]
    assert facts["pids"] == [1, 2]
    assert facts["me"] == 2
    assert facts["open"] == [0, 1, 2, 3], "more than standard streams, and the folder it lists"
    assert facts["host"] == "worker"
    assert facts["uid"] == 10001
    assert [line.split()[1].strip("0") for line in facts["status"]] == ["", "", "1"]
    assert facts["kill"] == "ProcessLookupError"
    assert facts["mount"] == -1
    assert facts["link"] in ("OSError", "PermissionError")
    assert (tmp_path / "data" / "case").read_text() == "patient"
    assert list((tmp_path / "data").iterdir()) == [tmp_path / "data" / "case"]


def test_what_is_in_force_is_said(runtimes: dict[str, ProcessRuntime]) -> None:
    plain = runtimes["none"].protections()
    assert plain.isolation is Isolation.NONE
    assert "can use the network" in plain.detail[0]


def test_without_bubblewrap_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = ProcessRuntime().protections()
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    broken = ProcessRuntime().protections()
    assert missing.isolation is broken.isolation is Isolation.NONE
    assert "not installed" in missing.detail[0]
    assert "No permissions" in broken.detail[0]


def test_a_sandbox_that_holds_less_than_it_promises_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bubblewrap that starts what it is given, and builds no walls."""
    fake = tmp_path / "bwrap"
    fake.write_text(
        f"""#!{sys.executable}
import os, sys
inside = sys.argv[sys.argv.index("--", 1) + 1:]
inside = [{str(Path(process.__file__).with_name("inspector.py"))!r} if a == "/inspector.py" else a for a in inside]
os.execv(inside[0], inside)
"""
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = ProcessRuntime().protections()
    assert found.isolation is Isolation.NONE
    assert "does not keep what it promises" in found.detail[0]
    assert not {Protection.NO_NETWORK, Protection.OWN_PROCESSES, Protection.SYSCALL_FILTER} & found.in_force


def test_without_a_filter_the_rest_of_the_sandbox_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an architecture whose calls are not known here."""
    monkeypatch.setattr("msfl.runtime.process.seccomp.program", lambda: None)
    found = ProcessRuntime().protections()
    if found.isolation is Isolation.NONE:
        pytest.skip(found.detail[0])
    assert Protection.SYSCALL_FILTER not in found.in_force
    assert "System calls are not filtered." in found.detail


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    until(lambda: not alive(str(tmp_path)))


def test_a_sandbox_that_dies_half_made_holds_nobody_up(
    sandboxed: ProcessRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """bubblewrap was killed while its child waited for it, with the pipe in its hand."""
    dying = tmp_path / "bwrap"
    dying.write_text(f"#!/bin/sh\ntail -f {dying} &\nexit 1\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sandboxed, "_bwrap", str(dying))
    handle = sandboxed.start(order(tmp_path, "pass"))
    assert until(lambda: sandboxed.poll(handle)) == Exit(1, None)
    until(lambda: not alive(str(tmp_path)))


def test_the_inbox_can_neither_be_written_nor_swapped_for_a_link(sandboxed: ProcessRuntime, tmp_path: Path) -> None:
    """A link planted where the host will write next would make the host write for the contained process."""
    what = order(
        tmp_path,
        """
        tell(
            plant=attempt(lambda: os.symlink("/etc/passwd", F / "inbox" / "000.sealed")),
            swap=attempt(lambda: (F / "inbox").rename(F / "old")),
            door=attempt(lambda: (F / "link.sock").unlink()),
            outbox=attempt(lambda: (F / "outbox").rename(F / "scratch" / "o")),
            still=attempt(lambda: (F / "inbox" / "given").read_text()),
        )
        """,
    )
    (tmp_path / "F" / "inbox").mkdir()
    (tmp_path / "F" / "inbox" / "given").write_text("sealed")
    (tmp_path / "F" / "link.sock").touch()
    _, facts = run(sandboxed, what)
    assert facts == {"plant": "OSError", "swap": "OSError", "door": "OSError", "outbox": "OSError", "still": "'sealed'"}


def test_what_the_lock_does_not_hold_is_not_found_though_it_is_installed(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    """Nobody reviewed it, nothing verifies it, and in a container of the same release it is not there."""
    code = """
        import importlib.util
        import numpy.linalg
        def needs_scipy(): import scipy
        tell(numpy=numpy.__name__, scipy=attempt(needs_scipy), asked=importlib.util.find_spec("scipy") is None)
    """
    ended, facts = run(runtime, order(tmp_path, code))
    assert ended.status == 0
    assert facts == {"numpy": "numpy", "scipy": "ModuleNotFoundError", "asked": True}
