"""`GovernedSite`: one site's gateway around the product's own judge, standing, memory and audit log, in one folder.

Real are the documents, the registry's bytes, the run's thread and its machine; made up are the line (`answers` and
`reports` are what left), the runtime (`started` is what began, and its worker does nothing) and the clock (`now`).

    site = GovernedSite(folder)
    site.hear(site.papers())              what came with the heartbeat
    assert site.offer() == "allow"        one offer, one answer
    site.order()                          asks for the worker, and waits for what became of it

`OfferedSite`: the same for stories of one offer over papers that do not fit: `told` has the decision, as it was
answered and as it stands in the audit log. Its image is only named, never fetched.
"""

from __future__ import annotations

import base64
import json
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self, cast

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fakes.governance import AUDIENCE, DIGEST, ISSUER, LATER, NOW, POLICY_YAML, World, key, member
from fakes.keyrings import make_keyring
from fakes.members import member_home
from fakes.registries import Image, MemoryRegistry
from msfl.gateway.agent import Agent
from msfl.gateway.home import Home, SiteSettings, write
from msfl.gateway.judge import Judge
from msfl.gateway.ledger import Ledger
from msfl.gateway.link import Link
from msfl.gateway.memory import Memory
from msfl.gateway.site_run import RunAtSite
from msfl.gateway.standing import Standing
from msfl.gateway.surroundings import Surroundings
from msfl.gateway.witness import Witness
from msfl.policies.documents import (
    FederationRoot,
    Isolation,
    IssuerKeys,
    JobSpec,
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
from msfl.registry.cache import ImageCache
from msfl.registry.publish import add_review, submit_statement
from msfl.runtime.interface import Exit, Handle, Protections, StartOrder
from msfl.runtime.keeper import door

PATIENCE_S = 10.0
SITE, FEDERATION = "site-a", "msfl-test"
JOB = World().job.model_copy(update={"digest": DIGEST})


class IdleRuntime:
    """Its workers greet, and then do nothing until they are ended."""

    whole_images = False
    reads_as: int | None = None

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
        link = TaskLink.dial(door(order.folder))
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
    def __init__(self, folder: Path, *issuers: IssuerKeys) -> None:
        """`issuers`: identity providers beside the world's own."""
        self.now = NOW
        self.home = Home(folder / "gateway")
        self.registry, self.digest = self._image()
        self.world = World(policy_yaml=POLICY_YAML.replace(DIGEST, self.digest))
        self.put_release()
        self.root = FederationRoot(
            federation=FEDERATION,
            version=1,
            keepers=(member("otto"),),
            timekeepers=(member("tim"),),
            publishers=(member("paul"),),
            reviewers=(member("rosa"), member("rui"), member("raya")),
            issuers=(
                IssuerKeys(issuer=ISSUER, audience=AUDIENCE, keys=(encode_public(key("issuer").public),)),
                *issuers,
            ),
            expires=LATER,
        )
        self.token = ""  # what offers carry; Ada's, given to her just now, where a story names no other
        self._make_home(folder)
        self.runs: list[RunAtSite] = []
        self.start_gateway()

    @classmethod
    @contextmanager
    def up(cls, folder: Path) -> Iterator[Self]:
        """It has heard fresh papers from its federation."""
        site = cls(folder)
        assert site.hear(site.papers()) == []
        yield site
        site.close()

    def _image(self) -> tuple[MemoryRegistry, str]:
        self.image = Image()
        return self.image.registry, self.image.push()

    def put_release(self, **changes: Any) -> None:
        """A statement and its reviews, all validly signed, on the image that the job names."""
        statement = self.world.statement.model_copy(update={"digest": self.digest, **changes})
        submit_statement(self.registry, self.digest, sign(encode(statement), RELEASE_STATEMENT, [key("paul")]))
        for reviewer in self.world.reviewers:
            add_review(self.registry, self.digest, self.world.review(reviewer, statement=statement))

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
        said = read_entries(log)
        self.memory.recall(said)
        self.standing = Standing(self.home, self.memory, self.audit_log)
        self.ledger = Ledger(self.home.root / "ledger.sqlite")
        self.ledger.recall(said, SITE)
        self.runtime, self.line = IdleRuntime(), Line()
        notary = Notary(self.audit_log, self.home.audit, f"site:{SITE}", lambda: self.now)
        self.judge = Judge(self.home, self.registry, self.ledger, Isolation.SANDBOX, self.standing)
        self.around = Surroundings(
            home=self.home,
            judge=self.judge,
            ledger=self.ledger,
            audit=self.audit_log,
            registry=self.registry,
            images=ImageCache(self.home.images, self.home.settings().images_bytes),
            runtime=self.runtime,
            link=cast(Link, self.line),
            witness=Witness(notary, cast(Link, self.line), self.audit_log, FEDERATION, lambda: self.now),
            clock=lambda: self.now,
            standing=self.standing,
        )
        self.standing.look_at_words(self.now)

    def agent(self) -> Agent:
        """Of this gateway, on no line. It looks after a certificate, so there is one."""
        folder = self.home.root.parent
        shutil.copytree(member_home(folder / "member", make_keyring(folder)).root / "tls", self.home.root / "tls")
        return Agent(self.around, "test")

    def close(self) -> None:
        for run in self.runs:
            run.close(end_worker=True)
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
        self.put_policy(sign(text.encode(), ASSET_POLICY, [key(n) for n in by]))

    def put_policy(self, envelope: bytes, name: str = "one") -> None:
        write(self.home.root / f"policies/{name}.dsse", envelope)

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
        """`allow`, `confirm`, or the code of the refusal, as the centre hears it. `changes` are fields of the job."""
        self.send(run_id, **changes)
        return self.answered()

    def send(self, run_id: str = "run-1", *, token: str = "", proof: str | None = None, **changes: Any) -> RunAtSite:
        """An offer, whatever becomes of it; signed by its user, unless `proof` says otherwise."""
        spec = self.spec(run_id, **changes)
        run = self.come_back(run_id)
        proof = sign_job(spec, key("ada")) if proof is None else proof
        self.offered = Offer(run_id, spec, proof, token or self.token or self.fresh_token(), dry_run=False)
        run.hear(self.offered)
        return run

    def offer_again(self) -> str:
        """The same offer to the newest run; the next answer."""
        self.runs[-1].hear(self.offered)
        return self.answered()

    def signed_job(self, run_id: str, **changes: Any) -> tuple[bytes, str]:
        spec = self.spec(run_id, **changes)
        return spec, sign_job(spec, key("ada"))

    def fresh_token(self) -> str:
        """Ada's, given to her just now."""
        bound, who = key("ada").thumbprint, ("user-1", "ada@uni.example", "uni.example")
        return mint_token(key("issuer"), ISSUER, AUDIENCE, *who, bound, self.now)

    def resend(
        self, generation: int, *, signed_for: int | None = None, proof: str | None = None, token: str = ""
    ) -> None:
        """The newest run is offered again, as what is resumed is."""
        run = self.runs[-1]
        spec = self.spec(run.run_id)
        if proof is None:
            proof = sign_job(spec, key("ada"), generation=generation if signed_for is None else signed_for)
        run.hear(Offer(run.run_id, spec, proof, token or self.token or self.fresh_token(), False, generation))

    def spec(self, run_id: str = "run-1", **changes: Any) -> bytes:
        """The bytes of the job that `run_id` is offered with."""
        update = {"digest": self.digest, "nonce": f"nonce-of-{run_id}-0123456789", **changes}
        return encode(self.world.job.model_copy(update=update))

    def come_back(self, run_id: str) -> RunAtSite:
        """The run's own thread, as a gateway makes it when it starts, or first hears of the run."""
        run = RunAtSite(run_id, self.around)
        self.runs.append(run)
        return run

    def answered(self) -> str:
        """The next answer: its verdict, or the code of the refusal."""
        answer = self.line.answers.get(timeout=PATIENCE_S)
        if answer.verdict != "refuse":
            return answer.verdict
        return str(answer.decision["refusal"]["code"])

    def answer(self, offer: Offer) -> OfferAnswer:
        self.come_back(offer.run_id).hear(offer)
        return self.line.answers.get(timeout=PATIENCE_S)

    def order(self, verb: str = "start", round: int = 0, *, nth: int = 0, **document: Any) -> None:
        """A task for the newest run; another one than the first of that round where `nth` says so."""
        run = self.runs[-1]
        run.hear(TaskOrder(run.run_id, f"{verb}/{nth or round}", verb, round, 1, document, ()))

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
        assert self.audited("worker starts") == []
        self.nothing_started_since(code)

    def nothing_started_since(self, code: str) -> None:
        """The same of the time after the last restart of the gateway."""
        assert self.runtime.started == []
        assert self.line.uploads == []
        assert self.audited("run decided")[-1] == code


def later(root: Any, **changes: Any) -> Any:
    """The next version of a root."""
    return root.model_copy(update={"version": root.version + 1, **changes})


# ----------------------------------------------------------------------------------------------- one offer, one answer


def forge(payload: bytes, payload_type: str, signer: str) -> bytes:
    """A DSSE envelope, validly signed, over whatever bytes: the product's own `sign` takes documents alone."""
    kind = payload_type.encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    signature = {"keyid": key(signer).id, "sig": base64.b64encode(key(signer).private.sign(signed)).decode()}
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": [signature]}
    return json.dumps(envelope).encode()


@dataclass(frozen=True)
class Told:
    """One decision as it was answered and as it stands in the audit log; `started` must be empty in every attack."""

    verdict: str
    code: str
    logged: dict[str, str]
    started: list[StartOrder]


class OfferedSite(GovernedSite):
    """`policy` is put there signed by the custodian; `JOB` names the image. It runs only while it is `told`."""

    def __init__(self, folder: Path, policy: bytes = POLICY_YAML.encode()) -> None:
        super().__init__(folder)
        self.close()
        self.put_policy(forge(policy, ASSET_POLICY.payload_type, "cleo"))

    def _image(self) -> tuple[MemoryRegistry, str]:
        registry = MemoryRegistry()
        registry.tamper(DIGEST, b"{}")  # Never fetched here; its papers hang on its digest.
        return registry, DIGEST

    def told(self, job: JobSpec = JOB, spec: bytes | None = None, **changes: Any) -> Told:
        """`spec`: other bytes than those of `job`; they are signed by the user's own key all the same."""
        data = encode(job) if spec is None else spec
        proof = sign_job(data, key("ada"), dry_run=bool(changes.get("dry_run")))
        self.start_gateway()
        try:
            assert self.hear(self.papers()) == []
            answer = self.answer(
                replace(Offer("run-1", data, proof, self.token or self.fresh_token(), False), **changes)
            )
        finally:
            self.close()
        last = read_entries(self.home.root / "audit/log.jsonl")[-1]
        assert last.action == ("run explained" if changes.get("dry_run") else "run decided")
        code = (answer.decision.get("refusal") or {}).get("code", "")
        return Told(answer.verdict, code, dict(last.fields), self.runtime.started)


def must_be_refused(told: Told, code: str) -> None:
    """The answer, the audit log and the quiet of the runtime agree."""
    assert (told.verdict, told.code) == ("refuse", code)
    assert (told.logged["verdict"], told.logged["code"]) == ("refuse", code)
    assert told.started == []
