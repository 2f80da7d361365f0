"""`OfferedSite`: a gateway's decision and all that would follow it, with a line and a runtime that only take notes.

Home, judge, ledger, audit log and the run's own thread are the product's. A story puts papers into the home or the
registry, offers a job, and looks at what was decided and at what the audit log says; nothing may have started.
"""

from __future__ import annotations

import base64
import json
import queue
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, cast

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fakes.governance import DIGEST, NOW, POLICY_YAML, World, key
from fakes.registries import MemoryRegistry
from msfl.gateway.home import Home, SiteSettings, write
from msfl.gateway.judge import Judge
from msfl.gateway.ledger import Ledger
from msfl.gateway.link import Link
from msfl.gateway.memory import Memory
from msfl.gateway.site_run import RunAtSite
from msfl.gateway.standing import Standing
from msfl.gateway.surroundings import Surroundings
from msfl.gateway.witness import Witness
from msfl.policies.documents import Isolation, JobSpec, Named, RevocationList, Timestamp
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
from msfl.policies.identity import sign_job
from msfl.protos.audit_log import AuditLog
from msfl.protos.messages import Offer, OfferAnswer, SiteProgress, TrustPapers
from msfl.protos.notary import Notary
from msfl.registry.publish import add_review, submit_statement
from msfl.runtime.interface import Handle, Protections, StartOrder

JOB = World().job.model_copy(update={"digest": DIGEST})


def forge(payload: bytes, payload_type: str, signer: str) -> bytes:
    """A DSSE envelope, validly signed, over whatever bytes: the product's own `sign` takes documents alone."""
    kind = payload_type.encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    signature = {"keyid": key(signer).id, "sig": base64.b64encode(key(signer).private.sign(signed)).decode()}
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": [signature]}
    return json.dumps(envelope).encode()


class NotingLine:
    """What a run says to the orchestrator, and no orchestrator. There is nothing else that it could send with."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[OfferAnswer] = queue.SimpleQueue()

    def answer(self, answer: OfferAnswer) -> None:
        self.answers.put(answer)

    def beat(self, progress: SiteProgress) -> None:
        pass


class NotingRuntime:
    def __init__(self) -> None:
        self.started: list[StartOrder] = []

    def protections(self) -> Protections:
        return Protections(Isolation.SANDBOX, ())

    def start(self, order: StartOrder) -> NoReturn:
        self.started.append(order)
        raise AssertionError("a worker was started")

    def poll(self, handle: Handle) -> NoReturn:
        raise AssertionError("nothing runs")

    def stop(self, handle: Handle, grace_s: float) -> NoReturn:
        raise AssertionError("nothing runs")

    def recover(self, folder: Path) -> None:
        return None


@dataclass(frozen=True)
class Told:
    """One decision as it was answered and as it stands in the audit log; `started` must be empty in every attack."""

    verdict: str
    code: str
    logged: dict[str, str]
    started: list[StartOrder]


class OfferedSite:
    """`site-a` of `World`, its papers in place; `policy` is put there signed by its custodian."""

    def __init__(self, folder: Path, policy: bytes = POLICY_YAML.encode()) -> None:
        self.world = World()
        self.home = Home(folder)
        self.registry = MemoryRegistry()
        self.home.write_settings(SiteSettings("site-a", "msfl-test", "127.0.0.1:1", "registry"))
        world = self.world
        site_root = sign(encode(world.site_root.document), SITE_ROOT, [key("cleo")])
        federation_root = sign(encode(world.federation_root.document), FEDERATION_ROOT, [key("otto")])
        write(folder / "trust/site-root.dsse", site_root)
        write(folder / "trust/federation-root.dsse", federation_root)
        write(folder / "trust/federation-root.sha256", sha256_of(federation_root).encode())
        write(folder / "datasets/ms-trial.json", encode(world.dataset))
        write(folder / "secrets/centre.pub", X25519PrivateKey.generate().public_key().public_bytes_raw())
        write(folder / "secrets/site.key", bytes(range(32)))
        self.put_policy(forge(policy, ASSET_POLICY.payload_type, "cleo"))
        self.registry.tamper(DIGEST, b"{}")  # An image is never fetched here; its papers hang on its digest.
        self.put_release()
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.papers = self._papers(federation_root)

    def _papers(self, root: bytes) -> TrustPapers:
        """An empty revocation list and a fresh timestamp, as they come with the heartbeat."""
        listed = RevocationList(federation="msfl-test", version=1, issued=NOW)
        named = Named(version=1, sha256=sha256_of(encode(listed)))
        stamp = Timestamp(
            federation="msfl-test",
            version=1,
            root=Named(version=1, sha256=Signed.parse(root, FEDERATION_ROOT).sha256),
            revocations=named,
            issued=NOW,
            expires=NOW + timedelta(days=1),
        )
        keeper = [key("otto")]
        return TrustPapers((), sign(encode(listed), REVOCATIONS, keeper), sign(encode(stamp), TIMESTAMP, keeper))

    def standing(self, memory: Memory, audit: AuditLog) -> Standing:
        standing = Standing(self.home, memory, audit)
        assert not list(standing.take(self.papers, NOW))
        return standing

    def judge(self, standing: Standing) -> Judge:
        return Judge(self.home, self.registry, self.ledger, Isolation.SANDBOX, standing)

    def put_policy(self, envelope: bytes, name: str = "policy") -> None:
        write(self.home.root / f"policies/{name}.dsse", envelope)

    def put_release(self, **changes: Any) -> None:
        """A statement and its reviews, all validly signed, on the image that the world's job names."""
        statement = self.world.statement.model_copy(update=changes)
        submit_statement(self.registry, DIGEST, sign(encode(statement), RELEASE_STATEMENT, [key("paul")]))
        for reviewer in self.world.reviewers:
            add_review(self.registry, DIGEST, self.world.review(reviewer, statement=statement))

    def offer(self, job: JobSpec = JOB, spec: bytes | None = None, **changes: Any) -> Told:
        """`spec`: other bytes than those of `job`; they are signed by the user's own key all the same."""
        data = encode(job) if spec is None else spec
        proof = sign_job(data, key("ada"), dry_run=bool(changes.get("dry_run")))
        offer = Offer("run-1", data, proof, self.world.token, False)
        line, runtime = NotingLine(), NotingRuntime()
        audit = AuditLog(self.home.root / "audit/log.jsonl", "gateway site-a")
        memory = Memory(self.home.memory_file)
        standing = self.standing(memory, audit)
        notary = Notary(audit, self.home.audit, "site:site-a", lambda: NOW)
        around = Surroundings(
            home=self.home,
            judge=self.judge(standing),
            ledger=self.ledger,
            audit=audit,
            registry=self.registry,
            runtime=runtime,
            link=cast(Link, line),
            witness=Witness(notary, cast(Link, line), audit, "msfl-test", lambda: NOW),
            clock=lambda: NOW,
            standing=standing,
        )
        run = RunAtSite("run-1", around)
        try:
            run.hear(replace(offer, **changes))
            answer = line.answers.get(timeout=30)
        finally:
            run.close()
            audit.close()
            memory.close()
            self.ledger.close()
        last = json.loads((self.home.root / "audit/log.jsonl").read_text().splitlines()[-1])
        assert last["action"] == ("run explained" if changes.get("dry_run") else "run decided")
        code = (answer.decision.get("refusal") or {}).get("code", "")
        return Told(answer.verdict, code, last["fields"], runtime.started)


def must_be_refused(told: Told, code: str) -> None:
    """The answer, the audit log and the quiet of the runtime agree."""
    assert (told.verdict, told.code) == ("refuse", code)
    assert (told.logged["verdict"], told.logged["code"]) == ("refuse", code)
    assert told.started == []
