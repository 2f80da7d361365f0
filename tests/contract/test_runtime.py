"""What every runtime promises to a gateway and an orchestrator: one suite for the process runtime with and without a
sandbox, for containers, and for the fake.

The programs are written once, as the body of `main(given, F, D, stop)`: real runtimes start them as an image's module.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.programs import ProgramImage, image_of, program
from fakes.runtimes import FakeRuntime
from msfl.policies.documents import Isolation
from msfl.policies.refusals import Code, Refusal, Refused
from msfl.protos.tasklink import Hello, Task, encode
from msfl.runtime.docker import DockerRuntime
from msfl.runtime.hosted import HostedProcess, ProcessGone, TaskFailed
from msfl.runtime.interface import Exit, Handle, Limits, Runtime, StartOrder
from msfl.runtime.process import ProcessRuntime

REAL = [pytest.mark.system, pytest.mark.slow]
NEEDS_A_SANDBOX = {"sandbox": Isolation.SANDBOX, "none": Isolation.NONE}


@pytest.fixture(
    params=["fake", *(pytest.param(kind, marks=REAL) for kind in ("sandbox", "none", "docker"))],
)
def open_runtime(request: pytest.FixtureRequest) -> Iterator[Callable[[], Runtime]]:
    """Makes one runtime after the other, as a host does that is started again."""
    kind = request.param
    if kind == "fake":
        yield FakeRuntime
        return
    if kind != "docker":
        found = ProcessRuntime(sandbox="auto" if kind == "sandbox" else "none").protections()
        if found.isolation < NEEDS_A_SANDBOX[kind]:
            pytest.skip(found.detail[0])
        yield lambda: ProcessRuntime(sandbox="auto" if kind == "sandbox" else "none")
        return
    address = request.getfixturevalue("engine")
    opened: list[DockerRuntime] = []

    def dial() -> Runtime:
        opened.append(DockerRuntime(address, keeper=f"contract {request.node.name}"))
        return opened[-1]

    yield dial
    opened[0]._tidy()
    for runtime in opened:
        runtime.close()


@pytest.fixture
def order(open_runtime: object, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., StartOrder]:
    contained = "docker" in request.node.callspec.id

    def make(main: str, name: str = "F", limits: Limits | None = None, **image: Any) -> StartOrder:
        where = tmp_path / name
        for part in ("data", "F/inbox", "F/outbox", "F/scratch", "F/figures"):
            (where / part).mkdir(parents=True, exist_ok=True)
        (where / "data" / "case").write_text("patient")
        base = request.getfixturevalue("base") if contained else None
        made: ProgramImage = image_of(program(main), where / "image", base)
        return StartOrder(
            run_id="run-1",
            image=replace(made, **image),
            release="model:1.0.0",
            role="worker",
            folder=where / "F",
            data=where / "data",
            site="site-a",
            log=where / "logs" / "worker.log",
            limits=limits or Limits(),
        )

    return make


def until(happens: Callable[[], Any], patience_s: float = 30.0) -> Any:
    give_up = time.monotonic() + patience_s
    while not (result := happens()):
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.02)
    return result


def facts(what: StartOrder) -> dict[str, Any]:
    return dict(json.loads((what.folder / "outbox" / "facts").read_text()))


def ended(runtime: Runtime, what: StartOrder) -> Exit:
    handle = runtime.start(what)
    try:
        return until(lambda: runtime.poll(handle))  # type: ignore[no-any-return]
    finally:
        runtime.stop(handle, 0)


UP = "(F / 'scratch' / 'up').touch()\n"


def up(what: StartOrder) -> bool:
    return (what.folder / "scratch" / "up").exists()


Open = Callable[[], Runtime]
Make = Callable[..., StartOrder]


def test_it_runs_the_images_module_with_its_arguments_and_its_data(open_runtime: Open, order: Make) -> None:
    what = order("print('a line', flush=True)\ntell(F, given=given, case=(D / 'case').read_text())")
    assert ended(open_runtime(), what) == Exit(0, None), what.log.read_text()
    found = facts(what)
    given = found["given"]
    assert (given["--role"], given["--site"], given["--release"]) == ("worker", "site-a", "model:1.0.0")
    assert found["case"] == "patient"
    assert what.log.read_text() == "a line\n"
    assert what.log.stat().st_mode & 0o777 == 0o600


def test_its_socket_reaches_the_host_and_it_reads_what_the_host_brings(open_runtime: Open, order: Make) -> None:
    what = order(
        f"""
        import socket
        s = socket.socket(socket.AF_UNIX); s.connect(str(F / "link.sock")); s.sendall({encode(Hello("m:1"))!r})
        s.recv(1000); s.close()
        tell(F, brought=(F / "inbox" / "000.bin").read_text())
        """
    )
    runtime = open_runtime()
    hosted = HostedProcess.start(runtime, what, patience_s=30)
    assert hosted.hello == Hello("m:1")
    # As a host brings files: for itself alone, and then for who is inside.
    brought = what.folder / "inbox" / "000.bin"
    brought.write_text("sealed")
    brought.chmod(0o444)
    hosted.stop(30)
    assert runtime.poll(hosted.handle) == Exit(0, None), what.log.read_text()
    assert facts(what) == {"brought": "sealed"}


def test_what_is_not_as_it_was_reviewed_starts_nothing(open_runtime: Open, order: Make, tmp_path: Path) -> None:
    runtime = open_runtime()
    if isinstance(runtime, DockerRuntime):
        what = order("tell(F)")
        (tmp_path / "F" / "code.tar.gz").write_bytes(b"something else")
        with pytest.raises(Refused, match="image_broken"):
            runtime.start(what)
        with pytest.raises(Refused, match="image_not_self_contained"):
            runtime.start(order("tell(F)", layers=()))
    else:
        refusal = Refusal(Code.ENVIRONMENT_DIFFERS, "numpy is 1.0, not 2.0", {"distributions": "numpy"})
        what = order("tell(F)", refusal=refusal)
        with pytest.raises(Refused) as refused:
            runtime.start(what)
        assert refused.value.refusal == refusal
    assert not what.log.exists()
    assert runtime.recover(what.folder) is None


def test_how_it_ended_is_said_once_and_for_ever(open_runtime: Open, order: Make) -> None:
    runtime = open_runtime()
    what = order("return 3")
    handle = runtime.start(what)
    assert until(lambda: runtime.poll(handle)) == Exit(3, None)
    assert runtime.poll(handle) == runtime.poll(handle) == runtime.stop(handle, 0) == Exit(3, None)


def test_stop_asks_first(open_runtime: Open, order: Make) -> None:
    runtime = open_runtime()
    what = order(f"{UP}stop.wait(60)\ntell(F, asked=stop.is_set())\nreturn 7")
    handle = runtime.start(what)
    until(lambda: up(what))
    assert runtime.poll(handle) is None
    assert runtime.stop(handle, 20) == Exit(7, None)
    assert facts(what) == {"asked": True}
    assert runtime.stop(handle, 20) == Exit(7, None)


def test_who_does_not_listen_is_killed(open_runtime: Open, order: Make) -> None:
    runtime = open_runtime()
    what = order(f"{UP}time.sleep(60)")
    handle = runtime.start(what)
    until(lambda: up(what))
    since = time.monotonic()
    assert runtime.stop(handle, 0.2) == Exit(None, signal.SIGKILL)
    assert time.monotonic() - since < 15
    assert runtime.recover(what.folder) is None


def test_another_host_process_finds_what_still_runs_and_ends_it(open_runtime: Open, order: Make) -> None:
    runtime = open_runtime()
    what = order(f"print('before', flush=True)\n{UP}stop.wait(60)\nreturn 5")
    handle = runtime.start(what)
    until(lambda: up(what))
    other = open_runtime()
    found = other.recover(what.folder)
    assert found == handle
    assert other.poll(found) is None
    other.stop(found, 10)
    assert other.poll(found) is not None
    assert runtime.poll(handle) is not None
    assert other.recover(what.folder) is None
    assert open_runtime().recover(what.folder.parent / "never") is None


def test_two_at_once_do_not_meet(open_runtime: Open, order: Make) -> None:
    runtime = open_runtime()
    one, two = order(f"{UP}stop.wait(60)\nreturn 1", name="one"), order(f"{UP}stop.wait(60)\nreturn 2", name="two")
    first, second = runtime.start(one), runtime.start(two)
    until(lambda: up(one) and up(two))
    assert runtime.stop(first, 20) == Exit(1, None)
    assert runtime.poll(second) is None
    assert runtime.recover(two.folder) == second
    assert runtime.stop(second, 20) == Exit(2, None)


def test_what_it_leaves_is_the_hosts_to_read_and_to_remove(open_runtime: Open, order: Make) -> None:
    what = order(
        """
        os.umask(0o077)
        (F / "scratch" / "a").mkdir(); (F / "scratch" / "a" / "b").write_text("x")
        tell(F, done=True)
        """
    )
    assert ended(open_runtime(), what) == Exit(0, None), what.log.read_text()
    assert (what.folder / "scratch" / "a" / "b").read_text() == "x"
    shutil.rmtree(what.folder)


def test_what_is_in_force_is_said(open_runtime: Open) -> None:
    found = open_runtime().protections()
    assert found.detail
    assert all(sentence.endswith(".") for sentence in found.detail)


BOUNDED = {
    "wall_time_s": ("time.sleep(60)", Limits(wall_time_s=0.7), "time"),
    "output_bytes": (
        "(F / 'outbox' / 'much').write_bytes(b'1' * (8 << 20)); time.sleep(60)",
        Limits(output_bytes=1 << 20),
        "bytes",
    ),
    "output_files": (
        "[(F / 'scratch' / str(n)).touch() for n in range(500)]; time.sleep(60)",
        Limits(output_files=100),
        "files",
    ),
}


@pytest.mark.parametrize("bound", BOUNDED)
def test_who_takes_too_much_is_ended_and_it_is_said_of_what(open_runtime: Open, order: Make, bound: str) -> None:
    main, limits, word = BOUNDED[bound]
    runtime = open_runtime()
    what = order(main, limits=limits)
    handle = runtime.start(what)
    how = until(lambda: runtime.poll(handle))
    assert word in how.excess, how
    assert runtime.stop(handle, 0) == how


WORKER = """
    import socket, struct
    link = socket.socket(socket.AF_UNIX); link.connect(str(F / "link.sock"))
    def send(**frame):
        body = json.dumps(frame).encode(); link.sendall(struct.pack(">I", len(body)) + body)
    def receive():
        head = link.recv(4)
        return json.loads(link.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL)) if head else None
    send(frame="Hello", release="m:1")
    while (task := receive()) is not None and task["frame"] == "Task":
        id = task["task_id"]
        while not (F / "inbox" / id).exists():
            send(frame="Progress", task_id=id, phase="train", done=1, total=2); time.sleep(0.05)
        send(frame="Result", task_id=id, document={"by": os.getpid()})
        (F / "scratch" / id).touch()
    """


def test_what_it_took_too_much_of_is_told_to_whoever_waits_for_it(open_runtime: Open, order: Make) -> None:
    runtime = open_runtime()
    if isinstance(runtime, FakeRuntime):
        pytest.skip("it has no keeper")
    greedy = WORKER.replace("id = task", "(F / 'outbox' / 'much').write_bytes(b'1' * (8 << 20)); id = task")
    host = HostedProcess.start(runtime, order(greedy, limits=Limits(output_bytes=1 << 20)), patience_s=30)
    with pytest.raises(TaskFailed) as failed:
        host.call(Task("one", "train", 1, {}), lambda _: None)
    assert failed.value.code == "resources_exceeded"
    assert "bytes" in failed.value.detail
    assert until(lambda: runtime.poll(host.handle)).excess == failed.value.detail
    host.stop()


NONSENSE = {
    "a frame without end": b"\xff" * 100,
    "no JSON": b"\x00\x00\x00\x04oops",
    "no frame": b"\x00\x00\x00\x02{}",
    "a task, as a host would give it": encode(Task("one", "train", 1, {})),
    "nothing": b"",
}


FEW = {"no frame", "nothing"}  # Each of the others takes ten seconds in each runtime, too.


@pytest.mark.parametrize(
    "said", [said if said in FEW else pytest.param(said, marks=pytest.mark.full) for said in NONSENSE]
)
def test_who_speaks_nonsense_is_ended(open_runtime: Open, order: Make, said: str) -> None:
    runtime = open_runtime()
    what = order(
        f"""
        import socket
        link = socket.socket(socket.AF_UNIX); link.connect(str(F / "link.sock")); link.sendall({NONSENSE[said]!r})
        {"link.close()" if said == "nothing" else ""}
        while True: time.sleep(60)
        """
    )
    if isinstance(runtime, FakeRuntime):
        pytest.skip("a thread cannot be ended")
    with pytest.raises(ProcessGone):
        HostedProcess.start(runtime, what, patience_s=60)
    assert runtime.recover(what.folder) is None


def test_a_host_that_comes_back_finds_the_task_where_it_left_it(open_runtime: Open, order: Make) -> None:
    """At work, and done meanwhile; and one that is done is not in the way of the next."""
    runtime = open_runtime()
    if isinstance(runtime, FakeRuntime):
        pytest.skip("a thread of the host does not outlive it")
    what = order(WORKER, limits=Limits(orphan_s=60))
    first_host = host = HostedProcess.start(runtime, what, patience_s=30)
    one, two, three = (Task(name, "train", 1, {}) for name in ("one", "two", "three"))
    heard: list[object] = []
    go_down_in_the_middle_of(host, one, heard)

    host = HostedProcess.take_back(later := open_runtime(), found(later, what), what.log)
    assert host.unfinished == "one"
    first = host.call(one, lambda _: (what.folder / "inbox" / "one").touch(0o444), begun=True)  # It had gone on.

    go_down_in_the_middle_of(host, two, heard)
    (what.folder / "inbox" / "two").touch(0o444)
    until(lambda: (what.folder / "scratch" / "two").exists())
    host = HostedProcess.take_back(later := open_runtime(), found(later, what), what.log)
    assert host.unfinished == "two"
    assert host.call(two, heard.append, begun=True).document == first.document
    host.let_go()

    host = HostedProcess.take_back(later := open_runtime(), found(later, what), what.log)
    assert host.unfinished == "two", "what it was given last"
    (what.folder / "inbox" / "three").touch(0o444)
    assert host.call(three, heard.append).task_id == "three"
    host.stop(30)
    assert later.recover(what.folder) is None
    assert until(lambda: runtime.poll(first_host.handle))


def found(runtime: Runtime, what: StartOrder) -> Handle:
    handle = runtime.recover(what.folder)
    assert handle is not None
    return handle


def go_down_in_the_middle_of(host: HostedProcess, task: Task, heard: list[object]) -> None:
    def call() -> None:
        with pytest.raises(ProcessGone):
            host.call(task, heard.append)

    heard.clear()
    calling = threading.Thread(target=call)
    calling.start()
    until(lambda: heard)
    host.let_go()
    calling.join()
    heard.clear()


def test_who_is_watched_by_nobody_ends(open_runtime: Open, order: Make, tmp_path: Path) -> None:
    """Its host was killed, and no other comes."""
    runtime = open_runtime()
    if isinstance(runtime, FakeRuntime):
        pytest.skip("a thread of the host does not outlive it")
    what = order(f"{UP}time.sleep(60)", limits=Limits(orphan_s=1.0))
    read, write = os.pipe()
    if (host := os.fork()) == 0:  # A host that starts it, and is killed.
        os.close(read)
        open_runtime().start(what)
        os.write(write, b"1")
        time.sleep(60)
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.close(read)
    until(lambda: up(what))
    handle = found(runtime, what)
    os.kill(host, signal.SIGKILL)
    os.waitpid(host, 0)
    since = time.monotonic()
    how = until(lambda: runtime.poll(handle))
    assert "nobody watched" in how.excess, how
    assert 0.5 < time.monotonic() - since < 20
