"""The door for people: notebook and terminal, behind server TLS, each call with the user's token.

The orchestrator verifies the token to know whom it serves; it approves nothing for a site. Each gateway verifies the
same token and the signature over the job by itself, so a lie told here is found out there. A token that is bound to a
key is served only with a fresh signature of that key over this very call (metadata `msfl-proof`), once, so that a
stolen token alone opens nothing; and nobody is served from an address that the operator has not allowed (`addresses`).

    Submit  a signed job ▸ a run that is offered to the named sites     (dry_run: they only answer)
    Watch   the run's public events from a sequence number on; under sequence 0, what is not kept: `Progress` of a site,
            and `Now`: whether the run is paused and what it waits for, whenever that changes
    Pause   no new step begins; a step that has begun is finished
    Resume  a paused run goes on; an aborted or failed one is offered to its sites again, with the token of this call
            and a proof over the same bytes and the number of the resumption: sites take it up for no other
    Show, Abort, List, Fetch
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import grpc

from msfl.orchestrator.doors.addresses import FORWARDED, Callers
from msfl.orchestrator.doors.link import PART_BYTES, Datasets
from msfl.orchestrator.doors.turned_away import Note, no_note
from msfl.orchestrator.engine import Engine
from msfl.orchestrator.releases import Releases
from msfl.orchestrator.runs.events import AbortRequested, CentralDone, Event, PauseRequested, Resumed, Submitted
from msfl.orchestrator.runs.machine import Phase, RunState, owns
from msfl.orchestrator.runs.machine import waiting_for as waiting_for_sites
from msfl.orchestrator.runs.rounds import retained_rounds
from msfl.orchestrator.runs.view import public_event, public_state
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import Malformed, load_json
from msfl.policies.identity import CALL_LIFE, User, issuer_key_revoked, verify_call, verify_job, verify_token
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.policies.trust import Revoked, TrustedFederationRoot
from msfl.protos.channel import peer_ip
from msfl.protos.convert import json_bytes
from msfl.protos.key_sets import KeySets
from msfl.protos.messages import CALL_PROOF, PEOPLE_METHOD, PROTOCOL, JsonObject
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import PeopleServicer

# Each open run has a thread and, once it is under way, an aggregator; each run is remembered for good.
MOST_OPEN_RUNS, MOST_RUNS_A_DAY = 32, 500
DAY_S = 24 * 3600.0
# What a user may fetch of a finished run: made by the aggregator for exactly that.
_FOR_PEOPLE = {"model": "export/model", "weights": "export/weights"}


class PeopleDoor(PeopleServicer):
    def __init__(
        self,
        engine: Engine,
        root: TrustedFederationRoot,
        datasets: Datasets,
        releases: Releases,
        key_sets: KeySets,
        callers: Callers,
        revoked: Callable[[], Revoked],
        turned_away: Note = no_note,
    ) -> None:
        self._engine = engine
        self._root = root
        self._datasets = datasets
        self._releases = releases
        self._key_sets = key_sets
        self._callers = callers
        self._revoked = revoked
        self._turned_away = turned_away
        self._calls = CallsSeen()
        self._opening = threading.Lock()

    def Submit(self, request: wire.Job, context: grpc.ServicerContext) -> wire.RunName:
        user, token = self._user(context, "Submit")
        if request.protocol != PROTOCOL:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this orchestrator speaks protocol {PROTOCOL}, the SDK {request.protocol}: update the older one",
            )
        try:
            spec = load_json(request.spec, JobSpec, "the job")
        except Malformed as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("abort returns never") from error
        refusal = verify_job(request.spec, request.proof, user, proof_required=False, dry_run=request.dry_run)
        if refusal is not None:
            self._refuse(context, refusal, user.name)
        if gone := sorted(self._revoked().sites.intersection(spec.sites)):
            what = f"The job names {gone[0]}, which is revoked."
            self._refuse(context, refuse(Code.SITE_REVOKED, what, site=gone[0]), user.name)
        known = self._datasets.all()
        missing = [ref for ref in spec.datasets if not any(d["ref"] == ref for ds in known.values() for d in ds)]
        if missing:
            shown = sorted(d["ref"] for ds in known.values() for d in ds)
            what = f"no gateway shows {', '.join(missing)}; the datasets now at hand are {', '.join(shown) or 'none'}"
            context.abort(grpc.StatusCode.NOT_FOUND, what)
        if spec.start_from is not None:
            self._can_start_from(context, spec, user)
        # Time first, so that names sort by age; random behind it, so that nobody can guess one.
        now = self._engine.now()
        run_id = f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        with self._opening:
            self._one_more(context, user, now)
            text, who = request.spec.decode(), (user.issuer, user.subject)
            asked = Submitted(now, run_id, text, request.proof, token, user.name, request.dry_run, *who)
            self._engine.submit(asked)
        return wire.RunName(run_id=run_id)

    def Show(self, request: wire.RunName, context: grpc.ServicerContext) -> wire.Document:
        return self._shown(self._own(context, "Show", request.run_id))

    def Watch(self, request: wire.WatchRun, context: grpc.ServicerContext) -> Iterator[wire.RunEvent]:
        run_id, after, rung = request.run_id, request.after, -1
        said: dict[str, object] = {}
        user, _ = self._user(context, "Watch")
        self._run_of(context, user, run_id)
        bell = self._engine.run_bell(run_id)
        context.add_callback(bell.ring)  # Who has hung up is not waited for.
        while context.is_active() and not self._engine.stopping:
            # A watcher stays for days; the key that vouched for it may be revoked meanwhile.
            if (refusal := issuer_key_revoked(user, self._revoked())) is not None:
                self._unknown(context, refusal)
            state, events = self._engine.seen(run_id, after)
            for sequence, event in events:
                shown = watched_event(state, event)
                yield wire.RunEvent(sequence=sequence, kind=shown["event"], json=json_bytes(shown))
                after = sequence
            if state.ended:
                return
            at = {"at": self._engine.now()}
            now = standing(state, self._engine.waiting_for(run_id))
            if said.get("") != now:
                said[""] = now
                yield wire.RunEvent(sequence=0, kind="Now", json=json_bytes(at | now))
            for site, progress in self._engine.progress(run_id).items():
                if said.get(site) != progress:
                    said[site] = progress
                    live = at | {"site": site, **asdict(progress)}
                    yield wire.RunEvent(sequence=0, kind="Progress", json=json_bytes(live))
            rung = bell.wait(rung, 5.0)

    def Pause(self, request: wire.RunName, context: grpc.ServicerContext) -> wire.Document:
        state = self._own(context, "Pause", request.run_id)
        if why := why_not_paused(state):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
        self._engine.post(state.run_id, PauseRequested(at=self._engine.now(), by=state.user))
        return self._shown(state)

    def Resume(self, request: wire.ResumeRun, context: grpc.ServicerContext) -> wire.Document:
        user, token = self._user(context, "Resume")
        state = self._run_of(context, user, request.run_id)
        if why := why_not_resumed(state):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
        spec, generation = state.spec_text.encode(), state.generation + state.ended
        refusal = verify_job(spec, request.proof, user, proof_required=False, generation=generation)
        if refusal is not None:
            self._refuse(context, refusal, user.name)
        with self._opening:
            if state.ended:
                self._one_more(context, user, self._engine.now(), anew=False)
            self._engine.post(state.run_id, Resumed(self._engine.now(), user.name, token, request.proof))
        return self._shown(state)

    def Abort(self, request: wire.RunName, context: grpc.ServicerContext) -> wire.Document:
        state = self._own(context, "Abort", request.run_id)
        self._engine.post(state.run_id, AbortRequested(at=self._engine.now(), by=state.user))
        return self._shown(state)

    def List(self, request: wire.ListWhat, context: grpc.ServicerContext) -> wire.Document:
        user, _ = self._user(context, "List")
        rows: list[JsonObject]
        match request.what:
            case "datasets":
                rows = [
                    {**d, "site": site, "present": self._engine.present(site)}
                    for site, listed in sorted(self._datasets.all().items())
                    for d in listed
                ]
            case "releases":
                rows = self._releases.listed()
            case "runs":
                rows = [
                    {
                        "run_id": s.run_id,
                        "name": s.spec.name,
                        "phase": s.phase.value,
                        "paused": s.paused,
                        "rounds": len(s.rounds),
                    }
                    for s in self._runs_of(user)
                ]
            case other:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"nothing to list under {other!r}")
                raise AssertionError("abort returns never")
        return wire.Document(json=json_bytes({request.what: rows}))

    def Fetch(self, request: wire.FetchArtifact, context: grpc.ServicerContext) -> Iterator[wire.Chunk]:
        state = self._own(context, "Fetch", request.run_id)
        key = _FOR_PEOPLE.get(request.artifact)
        if key is None or key not in state.outputs.get("export", ()):
            context.abort(grpc.StatusCode.NOT_FOUND, f"run {request.run_id} has no {request.artifact!r} (yet)")
            return
        path = self._engine.artifacts.local(request.run_id, key)
        total = path.stat().st_size
        with open(path, "rb") as file:
            offset = file.seek(request.offset)
            while data := file.read(PART_BYTES):
                yield wire.Chunk(offset=offset, data=data, total=total)
                offset += len(data)

    # -------------------------------------------------------------- checks

    def _shown(self, state: RunState) -> wire.Document:
        """The run as it is by now; `spec_text` are the signed bytes, and `proof` the signature, for its owner, who
        signs them again to resume it."""
        run_id = state.run_id
        now = self._engine.state(run_id) or state
        more = {
            "spec_text": now.spec_text,
            "proof": now.proof,
            "waiting_for": self._engine.waiting_for(run_id),
            "kept_rounds": sorted(retained_rounds(now) - {0}),
        }
        return wire.Document(json=json_bytes(public_state(now) | more))

    def _user(self, context: grpc.ServicerContext, method: str) -> tuple[User, str]:
        """Whoever calls: from an allowed address, with a token that holds, and with the key it is bound to."""
        metadata = context.invocation_metadata()
        said = dict(metadata)
        forwarded = [value for name, value in metadata if name == FORWARDED and isinstance(value, str)]
        if (refusal := self._callers.check(peer_ip(context), forwarded)) is not None:
            self._refuse(context, refusal)
        scheme, _, token = str(said.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "log in first: msfl login")
        now = datetime.now(UTC)
        revoked = self._revoked()
        key_sets = self._key_sets.trusted(self._root, revoked)
        user = verify_token(token, self._root.document.issuers, now, key_sets, revoked)
        if isinstance(user, Refusal):
            self._unknown(context, user)
            raise AssertionError("abort returns never")
        call = verify_call(str(said.get(CALL_PROOF, "")), PEOPLE_METHOD + method, token, user, now)
        if isinstance(call, Refusal):
            self._unknown(context, call, user.name)
            raise AssertionError("abort returns never")
        if call and not self._calls.first(call, now):
            what = f"This call of {user.name} was made before."
            self._unknown(context, refuse(Code.PROOF_INVALID, what, user=user.name), user.name)
        return user, token

    def _own(self, context: grpc.ServicerContext, method: str, run_id: str) -> RunState:
        user, _ = self._user(context, method)
        return self._run_of(context, user, run_id)

    def _run_of(self, context: grpc.ServicerContext, user: User, run_id: str) -> RunState:
        state = self._engine.state(run_id)
        if state is None or not owns(state, user):
            # The same words for both: whether somebody else's run exists is not to be found out here.
            context.abort(grpc.StatusCode.NOT_FOUND, f"you have no run {run_id}; `msfl job list` names yours")
        assert state is not None
        return state

    def _runs_of(self, user: User) -> list[RunState]:
        return [state for state in self._engine.runs() if owns(state, user)]

    def _one_more(self, context: grpc.ServicerContext, user: User, now: float, *, anew: bool = True) -> None:
        """No user takes the centre up alone. `anew`: the run is not there yet."""
        mine = self._runs_of(user)
        if sum(not state.ended for state in mine) >= MOST_OPEN_RUNS:
            what = f"you have {MOST_OPEN_RUNS} runs that have not ended; wait for one, or abort one"
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, what)
        if anew and sum(now - state.submitted_at < DAY_S for state in mine) >= MOST_RUNS_A_DAY:
            what = f"you have submitted {MOST_RUNS_A_DAY} jobs within a day; submit this one tomorrow"
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, what)

    def _can_start_from(self, context: grpc.ServicerContext, spec: JobSpec, user: User) -> None:
        """Only from one's own run, of the very same release, and a model that is still kept."""
        start = spec.start_from
        assert start is not None
        earlier = self._run_of(context, user, start.run)
        if earlier.spec.digest != spec.digest:
            what = f"run {start.run} was made with {earlier.spec.release}; its model does not fit {spec.release}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"start_from: {what}")
        kept = sorted(retained_rounds(earlier) & set(range(len(earlier.rounds) + 1)))
        if "plan" not in earlier.documents or (start.round is not None and start.round not in kept):
            shown = ", ".join(map(str, kept)) if "plan" in earlier.documents else "none"
            what = f"run {start.run} has no model of round {start.round}; kept are those of rounds {shown}"
            context.abort(grpc.StatusCode.NOT_FOUND, f"start_from: {what}")

    def _unknown(self, context: grpc.ServicerContext, refusal: Refusal, who: str = "") -> None:
        self._turned_away("people", refusal.code.value, who, peer_ip(context))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{refusal.code.value}: {refusal.message}")

    def _refuse(self, context: grpc.ServicerContext, refusal: Refusal, who: str = "") -> None:
        self._turned_away("people", refusal.code.value, who, peer_ip(context))
        context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{refusal.code.value}: {refusal.message}")


class CallsSeen:
    """The names of calls of the last minutes, so that none is answered twice. In memory: what a restart forgets can be
    played again for at most as long as its time is good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}

    def first(self, name: str, now: datetime) -> bool:
        moment = now.timestamp()
        with self._lock:
            while self._seen and next(iter(self._seen.values())) < moment - 2 * CALL_LIFE.total_seconds():
                self._seen.pop(next(iter(self._seen)))
            fresh = name not in self._seen
            self._seen.setdefault(name, moment)
            return fresh


def why_not_paused(state: RunState) -> str:
    """Empty: it can be paused; a run that is paused already stays so."""
    if state.ended:
        return f"run {state.run_id} has ended ({state.phase.value}): there is nothing to pause"
    if state.dry_run:
        return f"run {state.run_id} only asks the sites what they would answer: there is nothing to pause"
    return ""


def why_not_resumed(state: RunState) -> str:
    """Empty: it can be resumed."""
    run = f"run {state.run_id}"
    match state.phase:
        case Phase.FINISHED:
            return f"{run} is finished and cannot be resumed: use run.extend(rounds=…) to train on from its model"
        case Phase.EXPLAINED:
            return f"{run} only asked the sites what they would answer: submit the job to start it"
        case Phase.REFUSED:
            return f"{run} was refused and never began: submit the job again when the sites' reasons are gone"
        case Phase.FAILED | Phase.ABORTED:
            return ""
        case Phase.OFFERED | Phase.RUNNING:
            return "" if state.paused else f"{run} is {state.phase.value} and not paused: there is nothing to resume"


def standing(state: RunState, waiting_for: str) -> JsonObject:
    """What holds at this moment and is in no event: the machine concludes it, or the centre's own store and keyring.

    `waiting_for` is `keyring`, `disk` or empty; `waiting_for_sites` are the absent sites the run cannot go on without.
    """
    return {
        "phase": state.phase.value,
        "task_id": "" if state.step is None else state.step.task_id,
        "paused": state.paused,
        "pause_reason": state.pause_reason,
        "waiting_for": waiting_for,
        "waiting_for_sites": list(waiting_for_sites(state)),
        "absent": sorted(m.site for m in state.members.values() if m.absent),
    }


def watched_event(state: RunState, event: Event) -> JsonObject:
    """A public event. With the aggregate of a round: whose update was refused, and what was conspicuous in it."""
    shown = public_event(event)
    if isinstance(event, CentralDone) and event.task_id.startswith("aggregate/"):
        for record in state.rounds:
            if f"aggregate/{record.round}" == event.task_id:
                flags = {site: list(flags) for site, flags in record.flags.items()}
                return shown | {"refused": dict(record.refused), "flags": flags}
    return shown
