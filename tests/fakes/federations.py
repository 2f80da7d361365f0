"""`LiveFederation`: a whole federation of real processes on tiny made-up data, for system tests.

Three sites, the small release, everything as in `msfl demo`: TLS, enrolment, signed policies, gateways as processes of
their own, bubblewrap where the machine has it. One federation serves many stories: a gateway reads its policies afresh
for every decision, so a story swaps a site's policy, runs, and puts the old one back.

    with LiveFederation.up(folder) as live:
        live.sign_policy("site-b", edit(live.policy("site-b"), "mode: auto", "mode: confirm"))
        run = live.client.submit(live.job(min_sites=3))
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from fakes.lines import Line
from fakes.tiny_data import tiny_dataset
from fakes.tls_proxy import TlsProxy
from msfl.gateway.home import Home
from msfl.policies.audit import verify
from msfl.policies.documents import Isolation, IssuerKeys, JobSpec
from msfl.policies.envelope import ASSET_POLICY, Signed, sign
from msfl.policies.keys import KeyPair
from msfl.runtime.process import ProcessRuntime
from msfl.sdk.client import Client
from msfl.sdk.credentials import Credentials
from msfl.sdk.demo.federation import DemoSite, Federation
from msfl.sdk.demo.processes import Processes, msfl

SITES = ("site-a", "site-b", "site-c")
DATASET = "lesions"
PATIENCE_S = 60.0
# For `job`: rounds of half a second, so that there is a middle to strike in. Without, one is a tenth of that.
STEADY: dict[str, Any] = {"local_epochs": 5, "config": {"batches_per_epoch": 1000}}


def tiny_sites(folder: Path, names: tuple[str, ...] = SITES, edge: int = 16) -> tuple[DemoSite, ...]:
    """Sites that differ in scanner gain and in cases."""
    return tuple(
        DemoSite(
            name, DATASET, tiny_dataset(folder / name, n_train=5 + i, n_test=2, seed=i, gain=1.0 + 0.2 * i, edge=edge)
        )
        for i, name in enumerate(names)
    )


def until(true: Callable[[], Any], what: str) -> Any:
    """Wait for another process; what it was that became true. Raises AssertionError after a minute."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < give_up, f"waited in vain: {what}"
        time.sleep(0.05)
    return found


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """To those that are there still: a process may end while one looks at it."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def held(*processes: psutil.Process) -> Iterator[None]:
    """Stopped, so that whoever talks to them waits in the middle of a sentence. A worker that is silent for too long
    is ended by its gateway meanwhile."""
    send(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send(processes, signal.SIGCONT)


def command_of(process: psutil.Process) -> list[str]:
    """Its arguments; none when it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; who waits to be reaped has."""
    return [p for p in processes if _status(p) not in ("", psutil.STATUS_ZOMBIE)]


@dataclass
class LiveFederation:
    federation: Federation
    processes: Processes
    client: Client
    _version: int = 1

    @classmethod
    @contextmanager
    def up(
        cls,
        folder: Path,
        release: str = "logistic",
        names: tuple[str, ...] = SITES,
        rounds_max: int = 20,
        issuers: tuple[IssuerKeys, ...] = (),
        registry: str = "",
        base: str = "",
        engine: str = "",
        edge: int = 16,
    ) -> Iterator[LiveFederation]:
        now = datetime.now(UTC).replace(microsecond=0)
        processes = Processes(folder / "logs")
        try:
            sites = tiny_sites(folder / "data", names, edge)
            isolation = Isolation.CONTAINER if engine else ProcessRuntime().protections().isolation
            runtime = ("--runtime", "docker", "--engine", engine) if engine else ()
            federation = Federation(folder, processes, sites, isolation, rounds_max, issuers, registry, base, runtime)
            federation.publish_release(release, now)
            federation.start_centre(now)
            federation.check_data()
            federation.serve_centre()
            federation.join_sites(now)
            client = Client(Credentials.read(federation.write_credentials(now)))
            live = cls(federation, processes, client)
            live._raise_budgets()
            until(live.all_present, "the gateways to come on the line")
            yield live
            client.close()
            for site in live.names:
                live.audit(site)
        finally:
            processes.close()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.federation.sites)

    # ------------------------------------------------------------------------------------------------- the job

    def job(self, **changes: Any) -> JobSpec:
        """All three sites, one round of two batches, no baseline; all must take part unless `min_sites` says less."""
        assert self.federation.statement is not None
        given: dict[str, Any] = {
            "release": self.federation.statement.ref,
            "datasets": [f"{site}/{DATASET}" for site in self.names],
            "rounds": 1,
            "profile": "demo",
            "config": {"batches_per_epoch": 2},
            "name": "story",
        }
        return self.client.job(**(given | changes))

    def all_present(self) -> bool:
        return sum(bool(row["present"]) for row in self.client.datasets()) == len(self.names)

    # ------------------------------------------------------------------------------------------------ policies

    def home(self, site: str) -> Path:
        return self.federation.home(site)

    def policy(self, site: str) -> str:
        """The text of the policy that the site's custodian has signed."""
        return (self.home(site) / "policies/lesion-segmentation.yaml").read_text()

    def custodian_key(self, site: str) -> KeyPair:
        (file,) = (self.federation.folder / "sites" / site / "custodian").glob("*.pem")
        return KeyPair.from_pem(file.read_bytes())

    def confirm(self, site: str, run_id: str) -> subprocess.CompletedProcess[str]:
        """The custodian reads and signs."""
        (key,) = (self.federation.folder / "sites" / site / "custodian").glob("*.pem")
        return self.command("gateway", "confirm", run_id, "--home", self.home(site), "--key", key, "--yes")

    def sign_policy(self, site: str, text: str, key: KeyPair | None = None) -> None:
        """`key`: the custodian's own when not given."""
        self._version += 1  # No gateway goes back to a version, or takes another text for the same.
        text = re.sub(r"(?m)^version: \d+", f"version: {self._version}", text)
        envelope = sign(text.encode(), ASSET_POLICY, [key or self.custodian_key(site)])
        self._signed(site).write_bytes(envelope)

    def _raise_budgets(self) -> None:
        """A policy of the demo allows ten runs; this federation serves more stories than that."""
        for site in self.names:
            text = (
                self.policy(site).replace("max_runs: 10,", "max_runs: 1000,").replace("max_rounds: ", "max_rounds: 9")
            )
            (self.home(site) / "policies/lesion-segmentation.yaml").write_text(text)
            self.sign_policy(site, text)

    def remove_policy(self, site: str) -> None:
        self._signed(site).unlink()

    def _signed(self, site: str) -> Path:
        return self.home(site) / "policies/lesion-segmentation.dsse"

    @contextmanager
    def policies_put_back(self) -> Iterator[None]:
        before = {site: Signed.parse(self._signed(site).read_bytes(), ASSET_POLICY).payload for site in self.names}
        try:
            yield
        finally:
            for site, text in before.items():
                self.sign_policy(site, text.decode())

    # --------------------------------------------------------------------------------------- what can be seen

    def audit(self, site: str, run_id: str = "") -> list[dict[str, Any]]:
        """The site's audit entries, of one run when named. The chain is whole, or this raises AssertionError."""
        lines = (self.home(site) / "audit/log.jsonl").read_bytes().splitlines(keepends=True)
        broken = verify(lines)
        assert broken is None, broken
        return [entry for entry in map(json.loads, lines) if not run_id or entry["object"] == run_id]

    def said(self, site: str, run_id: str) -> list[dict[str, Any]]:
        """The audit entries of one run, as they lie there: quick, for those who wait for one. When the federation
        ends, the chains of all its sites are verified."""
        lines = (self.home(site) / "audit/log.jsonl").read_bytes().splitlines()
        return [
            entry for entry in map(json.loads, (x for x in lines if run_id.encode() in x)) if entry["object"] == run_id
        ]

    def actions(self, site: str, run_id: str) -> list[str]:
        return [entry["action"] for entry in self.said(site, run_id)]

    def process(self, name: str) -> psutil.Process:
        """A long-running part: `orchestrator`, `keyring`, `gateway:site-a`."""
        return psutil.Process(self.processes._children[name].pid)

    def end(self, name: str) -> None:
        """Stop a long-running part politely; `processes.start` with the same name brings it back."""
        child = self.processes._children[name]
        child.terminate()
        child.wait(20)

    def kill(self, name: str) -> None:
        """`kill -9` a long-running part; what it had started dies with it."""
        self.processes.kill(name)

    def abandon_runs(self) -> None:
        """Every part is up, and no run goes on: what a story that failed owes the next."""
        parts = ("keyring", "orchestrator", *(f"gateway:{site}" for site in self.names))
        for name in parts:
            if self.processes._children[name].poll() is not None:
                self.start_again(name)
        for row in self.client.runs():
            if row["phase"] in ("offered", "running"):
                self.client.abort(row["run_id"])

    def start_again(self, name: str) -> None:
        """What `kill` ended, as its service manager would."""
        part, _, site = name.partition(":")
        centre = self.federation.folder / "centre"
        command = {
            "gateway": msfl("gateway", "serve", "--home", self.home(site)),
            "orchestrator": msfl("orchestrator", "serve", "--home", centre),
            "keyring": msfl("orchestrator", "keyring", "--home", centre),
        }[part]
        self.processes.start(name, command)

    @contextmanager
    def over(self, line: Line | TlsProxy, site: str, enough: int = 2500) -> Iterator[None]:
        """The site's gateway reaches the centre over `line` only; it is started anew for that, and again after.

        `enough`: bytes that are a handshake and a first call, on this line.
        """
        home, gateway = Home(self.home(site)), f"gateway:{site}"
        fair = home.settings()
        self.end(gateway)
        home.write_settings(replace(fair, link_endpoint=f"127.0.0.1:{line.port}"))
        self.start_again(gateway)
        try:
            # Only what came over the line proves that the gateway is on it.
            until(lambda: line.passed["up"] > enough and self.all_present(), f"{site} to come over its line")
            yield
        finally:
            self.end(gateway)
            home.write_settings(fair)
            self.start_again(gateway)
            until(self.all_present, f"{site} to be back")

    def workers(self, site: str) -> list[psutil.Process]:
        """The contained processes of the site, keeper and sandbox launcher included, whichever gateway started them."""
        boxes = str(self.home(site) / "runs")
        keepers = [p for p in psutil.process_iter() if "--role" in (said := command_of(p)) and boxes in " ".join(said)]
        found = {p.pid: p for keeper in keepers for p in (keeper, *_children(keeper)) if "--role" in command_of(p)}
        return list(found.values())

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`msfl …` as staff would type it."""
        return subprocess.run(msfl(*arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status()) if process.is_running() else ""
    except psutil.NoSuchProcess:
        return ""


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
