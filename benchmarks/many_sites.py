"""How many sites one centre holds: `python benchmarks/many_sites.py --sites 200 --rounds 5`.

Real: orchestrator, keyring, aggregator process, enrolment, mutual TLS with a key and a channel per site, the
protocol, sealing on both sides, every byte durable at the centre. Not real: the sites' work. Each site is a thread in
one of a few processes, which opens what comes down and seals it as its update. All share this machine's cores.

Printed: seconds per round from one round's model to the next one's, sites lost or late, peak memory and CPU seconds.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import psutil

ECHO = Path(__file__).resolve().parent / "round/echo_release"
sys.path.insert(0, str(ECHO))  # The release's own part of the package msfl.

from msfl.gateway.agent import BEAT_S  # noqa: E402
from msfl.gateway.enrol import enrol  # noqa: E402
from msfl.gateway.home import Home  # noqa: E402
from msfl.gateway.link import LineDown, Link, NotWanted  # noqa: E402
from msfl.gateway.membership import dial_as  # noqa: E402
from msfl.gateway.record import RunRecord  # noqa: E402
from msfl.gateway.task_files import TaskFiles  # noqa: E402
from msfl.orchestrator.home import CentreHome  # noqa: E402
from msfl.orchestrator.keyring.client import KeyringClient  # noqa: E402
from msfl.policies.documents import Isolation, Review  # noqa: E402
from msfl.policies.encoding import encode, sha256_of  # noqa: E402
from msfl.policies.envelope import RELEASE_STATEMENT, REVIEW, sign  # noqa: E402
from msfl.policies.keys import KeyPair  # noqa: E402
from msfl.protos.messages import (  # noqa: E402
    PROTOCOL,
    Arrival,
    JsonObject,
    Offer,
    OfferAnswer,
    SiteProgress,
    StopOrder,
    TaskOrder,
    TaskReport,
    result_key,
)
from msfl.protos.parcel import pack  # noqa: E402
from msfl.protos.registration import RegistrationToken  # noqa: E402
from msfl.protos.sealing import StreamHeader, run_key, seal, wrap_run_secret  # noqa: E402
from msfl.registry.build import build_release, find_recipe  # noqa: E402
from msfl.registry.oci_layout import LayoutRegistry  # noqa: E402
from msfl.registry.publish import add_review, push_release, submit_statement  # noqa: E402
from msfl.sdk.client import Client  # noqa: E402
from msfl.sdk.credentials import Credentials  # noqa: E402
from msfl.sdk.demo.federation import PUBLISHER, REVIEWERS, YEAR, Federation  # noqa: E402
from msfl.sdk.demo.processes import Processes  # noqa: E402

DATASET = "none"
_SAYS: dict[str, JsonObject] = {
    "fingerprint": {"n_cases": 4, "labels": {"background": 0, "lesion": 1}},
    "prepare": {"n_train": 4, "n_val": 0, "n_test": 1},
    "train": {"n_train": 4, "train_loss": 1.0, "seconds": 0.0},
    "evaluate": {"summaries": {"federated": {"n": 1}}},
}

# ------------------------------------------------------------------------------------------------------------- a site


class SimulatedSite:
    """Attends, allows every run, and answers each task with what it was given."""

    def __init__(self, root: Path) -> None:
        self._home = Home(root)
        self.site = self._home.settings().site
        self.link = Link(dial_as(self._home))

    def serve(self) -> None:
        arrival = Arrival(PROTOCOL, "many_sites", ({"ref": f"{self.site}/{DATASET}", "labels": {}},))
        while True:
            with suppress(LineDown):
                for order in self.link.attend(arrival):
                    match order:
                        case Offer():
                            self._allow(order)
                        case TaskOrder():
                            self._do(order)
                        case StopOrder():
                            pass
            time.sleep(0.5)

    def _folder(self, run_id: str) -> Path:
        return self._home.root / "runs" / run_id

    def _allow(self, offer: Offer) -> None:
        secret = secrets.token_bytes(32)
        site_key = self._home.secret("site.key")
        RunRecord(self._folder(offer.run_id)).save_secret(secret, site_key)
        (self._folder(offer.run_id) / "box/inbox").mkdir(parents=True, exist_ok=True)
        (self._folder(offer.run_id) / "box/outbox").mkdir(exist_ok=True)
        wrapped = wrap_run_secret(self._home.secret("centre.pub"), secret, offer.run_id, self.site, site_key)
        self.link.answer(OfferAnswer(offer.run_id, "allow", {}, wrapped, offer.generation))

    def _do(self, order: TaskOrder) -> None:
        began, run_id, folder = time.monotonic(), order.run_id, self._folder(order.run_id)
        if order.verb not in _SAYS:
            self.link.report(TaskReport(run_id, order.task_id, order.attempt))
            return
        files = TaskFiles(self._home, run_id, self.site, folder)
        _, taken, received = files.take_inputs(order, lambda key, take: self._download(run_id, key, take))
        echoed = files.inbox / taken["weights"] if order.verb == "train" else None
        sealed = self._sealed(order, folder, echoed)
        key = result_key(order.task_id, self.site, order.attempt)
        self.link.upload(run_id, key, sealed)
        files.clear()
        sent = sealed.stat().st_size
        seconds = time.monotonic() - began
        self.link.report(
            TaskReport(
                run_id, order.task_id, order.attempt, "", key, bytes_up=sent, bytes_down=received, seconds=seconds
            )
        )

    def _download(self, run_id: str, key: str, take: Callable[[bytes], None]) -> int:
        got = 0

        def counted(piece: bytes) -> None:
            nonlocal got
            take(piece)
            got += len(piece)

        self.link.download(run_id, key, 0, counted)
        return got

    def _sealed(self, order: TaskOrder, folder: Path, tensors: Path | None) -> Path:
        key = run_key(*RunRecord(folder).secret(), order.run_id, self.site)
        header = StreamHeader(order.run_id, order.task_id, order.round, self.site, order.attempt, "up", "result")
        target = folder / "result.sealed"
        with target.open("wb") as out:
            if tensors is None:
                seal(key, header, pack(_SAYS[order.verb], None), out, salt=secrets.token_bytes(32))
            else:
                with tensors.open("rb") as source:
                    seal(key, header, pack(_SAYS[order.verb], source), out, salt=secrets.token_bytes(32))
        return target


def play(homes: list[Path]) -> None:
    """Many sites in one process, until it is ended."""
    sites = [SimulatedSite(home) for home in homes]
    for site in sites:
        threading.Thread(target=site.serve, name=site.site, daemon=True).start()
    while True:
        began = time.monotonic()
        for site in sites:
            with suppress(LineDown, NotWanted):
                site.link.beat(SiteProgress(run_id=""))
        time.sleep(max(0.0, BEAT_S - (time.monotonic() - began)))


# --------------------------------------------------------------------------------------------------------- the centre


def publish_echo(federation: Federation, now: datetime) -> str:
    registry = LayoutRegistry.create(federation.folder / "registry")
    built = build_release(find_recipe(str(ECHO)), Path(sysconfig.get_paths()["purelib"]))
    digest = push_release(registry, built)
    payload = encode(built.statement(publisher=PUBLISHER, commit="unknown", issued=now, expires=now + YEAR))
    submit_statement(registry, digest, sign(payload, RELEASE_STATEMENT, [federation.key(PUBLISHER)]))
    for reviewer in REVIEWERS:
        review = Review(
            digest=digest,
            statement_sha256=sha256_of(payload),
            verdict="approve",
            comment="Learns nothing.",
            reviewer=reviewer,
            issued=now,
            expires=now + YEAR,
        )
        add_review(registry, digest, sign(encode(review), REVIEW, [federation.key(reviewer)]))
    return built.ref


def enrol_site(federation: Federation, site: str, now: datetime) -> Path:
    centre = CentreHome(federation.folder / "centre")
    settings = centre.settings()
    text = KeyringClient(centre.keyring_socket).token(
        federation=settings.federation,
        site=site,
        endpoint=f"{settings.host}:{settings.port}",
        link_endpoint=f"{settings.host}:{settings.link_port}",
        registry=settings.registry,
        federation_root_sha256=sha256_of(centre.federation_root.read_bytes()),
        hours=1.0,
        cidrs=("127.0.0.0/8",),
    )
    root = federation.folder / "sites" / site
    enrol(RegistrationToken.decode(text), root, {f"custodian@{site}.example": KeyPair.generate()}, now)
    return root


class Meter:
    """Peak memory (MiB) and CPU seconds of the centre's processes, looked at twice a second."""

    def __init__(self, orchestrator: psutil.Process) -> None:
        self._orchestrator = orchestrator
        self.memory: dict[str, float] = {}
        self.together = 0.0
        self.cpu: dict[str, float] = {}
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            now = 0.0
            with suppress(psutil.Error):
                for process in (self._orchestrator, *self._orchestrator.children(recursive=True)):
                    command = process.cmdline()
                    if process != self._orchestrator and ("--role" not in command or "bwrap" in command[0]):
                        continue
                    name = "orchestrator" if process == self._orchestrator else "aggregator"
                    mib, cpu = process.memory_info().rss / 2**20, process.cpu_times()
                    now += mib
                    self.memory[name] = max(mib, self.memory.get(name, 0.0))
                    self.cpu[name] = cpu.user + cpu.system
                self.together = max(self.together, now)
            time.sleep(0.5)


def measure(n_sites: int, rounds: int, model_mb: float, n_processes: int, folder: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    processes = Processes(folder / "logs")
    try:
        federation = Federation(folder, processes, (), Isolation.NONE, rounds_max=rounds)
        ref = publish_echo(federation, now)
        federation.start_centre(now)
        federation.serve_centre()
        names = [f"site-{i:03d}" for i in range(n_sites)]
        with ThreadPoolExecutor(8) as pool:
            homes = list(pool.map(lambda name: enrol_site(federation, name, now), names))
        for i in range(n_processes):
            processes.start(f"gateway:{i}", [sys.executable, __file__, "--play", *map(str, homes[i::n_processes])])
        client = Client(Credentials.read(federation.write_credentials(now)))
        refs = [f"{name}/{DATASET}" for name in names]
        while sum(row["present"] for row in client.datasets()) < n_sites:
            time.sleep(0.2)
        meter = Meter(psutil.Process(processes._children["orchestrator"].pid))
        run = client.submit(
            client.job(release=ref, datasets=refs, rounds=rounds, config={"model_mb": model_mb}, name="many")
        )
        closed: list[float] = []
        for _, kind, event in client.watch(run.run_id):
            if kind in ("SiteFailed", "SiteSilent", "CentreFailed", "DeadlinePassed"):
                print(f"  {kind}: {event}")
            if kind == "TaskDone" and event["task_id"] == "prepare":
                closed[:1] = [event["at"]]
            if kind == "CentralDone" and event["task_id"].startswith("aggregate/"):
                closed.append(event["at"])
                took = closed[-1] - closed[-2]
                print(f"  {event['task_id']}: {took:6.2f} s, of it {event['seconds']:.2f} s at the centre")
        state = run.state()
        client.close()
        spans = [b - a for a, b in pairwise(closed)]
        lost = sum(m["standing"] != "accepted" for m in state["sites"].values())
        late = sum(len(r["late"]) for r in state["rounds"])
        print(f"{n_sites} sites, {model_mb:.2f} MB model, {len(spans)} rounds, run {state['phase']} {state['reason']}")
        print(f"seconds per round     median {statistics.median(spans):6.2f}   max {max(spans):6.2f}")
        print(f"sites lost {lost}, late {late}")
        for name in meter.memory:
            print(f"{name:14} {meter.memory[name]:7.0f} MiB at most  {meter.cpu[name]:7.1f} s of CPU")
        print(f"both together  {meter.together:7.0f} MiB at most")
    finally:
        processes.close()


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--sites", type=int, default=200)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--model-mb", type=float, default=1.0)
    asked.add_argument("--processes", type=int, default=4)
    asked.add_argument("--folder", type=Path, default=None, help="kept; a temporary one when not given")
    asked.add_argument("--play", type=Path, nargs="+", default=None, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.play:
        play(given.play)
    with tempfile.TemporaryDirectory() as name:
        measure(given.sites, given.rounds, given.model_mb, given.processes, given.folder or Path(name))


if __name__ == "__main__":
    main()
