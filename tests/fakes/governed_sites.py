"""`GovernedSite`: one site's gateway around the product's own judge, standing, memory and audit log, in one folder.

Real are the documents, the registry's bytes, the run's thread and its machine; made up are the line (`answers` and
`reports` are what left), the runtime (`started` is what began, and its worker does nothing) and the clock (`now`).

    site = GovernedSite(folder)
    site.hear(site.papers())              what came with the heartbeat
    assert site.offer() == "allow"        one offer, one answer
    site.order()                          asks for the worker, and waits for what became of it
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fakes.governance import AUDIENCE, DIGEST, ISSUER, LATER, NOW, POLICY_YAML, World, key, member
from fakes.registries import Image
from msfl.gateway.home import Home, SiteSettings, write
from msfl.gateway.judge import Judge
from msfl.gateway.ledger import Ledger
from msfl.gateway.link import Link
from msfl.gateway.memory import Memory
from msfl.gateway.site_run import RunAtSite, Surroundings
from msfl.gateway.standing import Standing
from msfl.gateway.witness import Witness
from msfl.policies.documents import (
    FederationRoot,
    Isolation,
    IssuerKeys,
    Named,
    RevocationList,
    SiteRoot,
    Timestamp,
)
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.envelope import (
    ASSET_POLICY,
    FEDERATION_ROOT,
    RELEASE_STATEMENT,
    REVOCATIONS,
    SITE_ROOT,
    TIMESTAMP,
    Signed,
    sign,
)
from msfl.policies.identity import mint_token, sign_job
from msfl.policies.keys import encode_public
from msfl.protos.audit_log import AuditLog, read_entries
from msfl.protos.messages import Offer, OfferAnswer, SiteProgress, TaskOrder, TaskReport, TrustPapers
from msfl.protos.notary import Notary
from msfl.protos.tasklink import Hello, Stop, TaskLink
from msfl.registry.publish import add_review, submit_statement
from msfl.runtime.interface import Exit, Handle, Protections, StartOrder

PATIENCE_S = 10.0
SITE, FEDERATION = "site-a", "msfl-test"


class IdleRuntime:
    """Its workers greet, and then do nothing until they are ended."""

    def __init__(self) -> None:
        self.started: list[StartOrder] = []
        self.busy, self.ended = threading.Event(), threading.Event()

    def protections(self) -> Protections:
        return Protections(Isolation.SANDBOX, ())

    def start(self, order: StartOrder) -> Handle:
        self.started.append(order)
        self.ended.clear()
        threading.Thread(target=self._live, args=(order,), daemon=True).start()
        return Handle(order.run_id, order.role, order.folder, 1, 1)

    def _live(self, order: StartOrder) -> None:
        link = TaskLink.dial(order.folder / "link.sock")
        link.send(Hello(order.release))
        while not isinstance(link.receive(), Stop | None):
            self.busy.set()
        link.close()
        self.ended.set()

    def poll(self, handle: Handle) -> Exit | None:
        return Exit(0, None) if self.ended.is_set() else None

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        assert self.ended.wait(PATIENCE_S)
        return Exit(0, None)

    def recover(self, folder: Path) -> Handle | None:
        return None


class Line:
    """Everything gets through at once."""

    def __init__(self) -> None:
        self.answers: queue.Queue[OfferAnswer] = queue.Queue()
        self.reports: queue.Queue[TaskReport] = queue.Queue()
        self.uploads: list[str] = []

    def answer(self, answer: OfferAnswer) -> None:
        self.answers.put(answer)

    def report(self, report: TaskReport) -> None:
        self.reports.put(report)

    def beat(self, progress: SiteProgress) -> None:
        return None

    def upload(self, run_id: str, key: str, file: Path) -> None:
        self.uploads.append(key)


class GovernedSite:
    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.home = Home(folder / "gateway")
        self.image = Image()
        self.digest = self.image.push()
        self.world = World(policy_yaml=POLICY_YAML.replace(DIGEST, self.digest))
        statement = self.world.statement.model_copy(update={"digest": self.digest})
        self._publish(statement)
        self.root = FederationRoot(
            federation=FEDERATION,
            version=1,
            keepers=(member("otto"),),
            timekeepers=(member("tim"),),
            publishers=(member("paul"),),
            reviewers=(member("rosa"), member("rui"), member("raya")),
            issuers=(IssuerKeys(issuer=ISSUER, audience=AUDIENCE, keys=(encode_public(key("issuer").public),)),),
            expires=LATER,
        )
        self._make_home(folder)
        self.runs: list[RunAtSite] = []
        self.start_gateway()

    def _publish(self, statement: Any) -> None:
        registry = self.image.registry
        submit_statement(registry, self.digest, sign(encode(statement), RELEASE_STATEMENT, [key("paul")]))
        for reviewer in ("rosa", "rui"):
            add_review(registry, self.digest, self.world.review(reviewer, statement=statement))

    def _make_home(self, folder: Path) -> None:
        self.home.write_settings(SiteSettings(SITE, FEDERATION, "127.0.0.1:1", "registry"))
        federation = sign(encode(self.root), FEDERATION_ROOT, [key("otto")])
        write(self.home.federation_root_file, federation)
        write(self.home.federation_root_file.with_suffix(".sha256"), sha256_of(federation).encode())
        self.site_root = SiteRoot(site=SITE, version=1, custodians=(member("cleo"),), threshold=1, expires=LATER)
        write(self.home.site_root_file, sign(encode(self.site_root), SITE_ROOT, [key("cleo")]))
        write(self.home.root / "datasets/ms-trial.json", encode(self.world.dataset))
        (folder / "data").mkdir()
        write(self.home.root / "datasets/ms-trial.path", str(folder / "data").encode())
        centre = X25519PrivateKey.from_private_bytes(b"c" * 32).public_key()
        write(self.home.root / "secrets/centre.pub", centre.public_bytes_raw())
        write(self.home.root / "secrets/site.key", bytes(range(32)))
        self.sign_policy()

    # ---------------------------------------------------------------- the gateway

    def start_gateway(self) -> None:
        """As `msfl gateway serve` puts it together."""
        log = self.home.root / "audit/log.jsonl"
        self.audit_log = AuditLog(log, f"gateway {SITE}")
        self.memory = Memory(self.home.memory_file)
        self.memory.recall(read_entries(log))
        self.standing = Standing(self.home, self.memory, self.audit_log)
        self.ledger = Ledger(self.home.root / "ledger.sqlite")
        self.runtime, self.line = IdleRuntime(), Line()
        registry = self.image.registry
        notary = Notary(self.audit_log, self.home.audit, f"site:{SITE}", lambda: self.now)
        self.judge = Judge(self.home, registry, self.ledger, Isolation.SANDBOX, self.standing)
        self.around = Surroundings(
            home=self.home,
            judge=self.judge,
            ledger=self.ledger,
            audit=self.audit_log,
            registry=registry,
            runtime=self.runtime,
            link=cast(Link, self.line),
            witness=Witness(notary, cast(Link, self.line), self.audit_log, FEDERATION, lambda: self.now),
            clock=lambda: self.now,
            standing=self.standing,
        )
        self.standing.look_at_words(self.now)

    def close(self) -> None:
        for run in self.runs:
            run.close()
        self.runs.clear()
        self.audit_log.close()
        self.memory.close()
        self.ledger.close()

    def restart(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.close()
        meanwhile()
        self.start_gateway()

    # ------------------------------------------------------------- what is signed

    def sign_policy(self, version: int = 3, by: tuple[str, ...] = ("cleo",), text: str = "") -> None:
        text = (text or self.world.policy_yaml).replace("\nversion: 3\n", f"\nversion: {version}\n")
        write(self.home.root / "policies/one.dsse", sign(text.encode(), ASSET_POLICY, [key(n) for n in by]))

    def revocations(self, version: int = 1, by: str = "otto", **named: Any) -> bytes:
        listed = RevocationList(federation=FEDERATION, version=version, issued=NOW, **named)
        return sign(encode(listed), REVOCATIONS, [key(by)])

    def timestamp(
        self,
        revocations: bytes,
        version: int = 1,
        issued: datetime = NOW,
        life: timedelta = timedelta(days=1),
        by: str = "tim",
        root: FederationRoot | None = None,
    ) -> bytes:
        listed = Signed.parse(revocations, REVOCATIONS)
        about = root or self.root
        stamp = Timestamp(
            federation=FEDERATION,
            version=version,
            root=Named(version=about.version, sha256=sha256_of(encode(about))),
            revocations=Named(version=REVOCATIONS.load(listed.payload, "list").version, sha256=listed.sha256),
            issued=issued,
            expires=issued + life,
        )
        return sign(encode(stamp), TIMESTAMP, [key(by)])

    def papers(self, version: int = 1, issued: datetime | None = None, **named: Any) -> TrustPapers:
        """A list and a timestamp of that version, issued now unless said otherwise."""
        listed = self.revocations(version, **named)
        return TrustPapers((), listed, self.timestamp(listed, version, issued or self.now))

    def hear(self, papers: TrustPapers) -> list[str]:
        """The codes of what was refused."""
        return [refusal.code.value for refusal in self.standing.take(papers, self.now)]

    # ------------------------------------------------------------------ what runs

    def offer(self, run_id: str = "run-1", **changes: Any) -> str:
        """`allow`, `confirm`, or the code of the refusal, as the centre hears it."""
        self.runs.append(RunAtSite(run_id, self.around))
        self.offered = Offer(run_id, *self.signed_job(run_id, **changes), self.token(), dry_run=False)
        return self.offer_again()

    def signed_job(self, run_id: str, **changes: Any) -> tuple[bytes, str]:
        nonce = f"nonce-of-{run_id}-0123456789"
        job = self.world.job.model_copy(update={"digest": self.digest, "nonce": nonce, **changes})
        spec = encode(job)
        return spec, sign_job(spec, key("ada"))

    def offer_again(self) -> str:
        """The same offer to the newest run; the next answer."""
        self.runs[-1].hear(self.offered)
        answer = self.line.answers.get(timeout=PATIENCE_S)
        if answer.verdict != "refuse":
            return answer.verdict
        return str(answer.decision["refusal"]["code"])

    def token(self) -> str:
        """Ada's, given to her just now."""
        bound, who = key("ada").thumbprint, ("user-1", "ada@uni.example", "uni.example")
        return mint_token(key("issuer"), ISSUER, AUDIENCE, *who, bound, self.now)

    def order(self, verb: str = "start", round: int = 0) -> None:
        """A task for the newest run."""
        run = self.runs[-1]
        run.hear(TaskOrder(run.run_id, f"{verb}/{round}", verb, round, 1, {}, ()))

    def failure(self) -> str:
        """The code that the next report gives; empty: the task is done."""
        return self.line.reports.get(timeout=PATIENCE_S).failure

    # -------------------------------------------------------------- what can be seen

    def audited(self, action: str) -> list[str]:
        """The codes in the audit log's entries of that action, in their order."""
        log = read_entries(self.home.root / "audit/log.jsonl")
        return [str(entry.fields.get("code", "")) for entry in log if entry.action == action]

    def nothing_started(self, code: str) -> None:
        """And the audit log says why."""
        assert self.runtime.started == []
        assert self.line.uploads == []
        assert self.audited("worker starts") == []
        assert self.audited("run decided")[-1] == code


def later(root: Any, **changes: Any) -> Any:
    """The next version of a root."""
    return root.model_copy(update={"version": root.version + 1, **changes})
