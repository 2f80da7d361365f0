"""`connect`, `Client`, `run_federated` and `attach`: from a few plain arguments to a signed job and a `Run`.

arguments ─▶ JobSpec (strict) ─▶ canonical bytes ─▶ signed with the user's key ─▶ Submit ─▶ Run
every call: a token, renewed a minute before it expires, and the signature of the user's key over the call
explain: the same, but every site only answers: allow, refuse or needs confirmation, and by which rule
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import grpc
from pydantic import BaseModel, ValidationError

from msfl.policies.documents import EarlyStopping, JobSpec, OnDivergence, Retention, StartFrom, seconds
from msfl.policies.encoding import encode
from msfl.policies.identity import User, sign_call, sign_job, verify_job
from msfl.policies.refusals import CannotProceed
from msfl.protos.channel import dial
from msfl.protos.messages import CALL_PROOF, PEOPLE_METHOD, PROTOCOL
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import PeopleStub
from msfl.sdk.credentials import Credentials, NotConnected, Renew, fresh
from msfl.sdk.run import Run

JsonObject: TypeAlias = dict[str, Any]
D = TypeVar("D", bound=BaseModel)
CALL_TIMEOUT_S = 30.0
# Questions: they change nothing, so one that was on its way when the line broke is asked again; after a pause, for the
# channel may not have noticed yet that its connection is gone.
_QUESTIONS = ("Show", "List")
_ASK_AGAIN_AFTER_S = (0.1, 0.5, 2.0)


_SAME_AGAIN = (
    *("name", "release", "datasets", "evaluate_only", "profile", "config", "strategy", "baseline", "min_sites"),
    *("start", "keep", "on_dropout", "retain", "early_stopping", "on_divergence", "seed"),
)


class RefusedByGovernance(Exception):
    """Somebody who may refuse did. `code` is the reason's code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BadJob(CannotProceed, ValueError):
    """The arguments do not make a job. The message names the argument."""


class NotNow(CannotProceed):
    """The run, as it stands, cannot be asked this: paused, resumed, …. The message says how it stands."""


class Client:
    """One user at one federation."""

    def __init__(self, credentials: Credentials, file: Path | None = None, renew: Renew = fresh) -> None:
        """`file`: where a renewed token is kept; nowhere when not given."""
        self._credentials = credentials
        self._file = file
        self._renew = renew
        self._lock = threading.Lock()
        self._channel = dial(credentials.endpoint, credentials.ca.encode())
        self._people = PeopleStub(self._channel)

    @property
    def user(self) -> str:
        return self._credentials.user

    def close(self) -> None:
        self._channel.close()

    def datasets(self) -> list[JsonObject]:
        """What the sites show: id, counts, channels, labels, whether the gateway is there now."""
        return self._list("datasets")

    def releases(self) -> list[JsonObject]:
        """What the registry holds, with digest, publisher, reviewers, or why it may not be used."""
        return self._list("releases")

    def runs(self) -> list[JsonObject]:
        return self._list("runs")

    def run(self, run_id: str) -> Run:
        """One of your runs, by its id; `watch` on it shows all that has happened so far, and goes on. Raises BadJob."""
        run = Run(run_id, self)
        run.state()
        return run

    def submit(self, spec: JobSpec, *, dry_run: bool = False) -> Run:
        """Sign a job and send it. Raises RefusedByGovernance, NotConnected."""
        data = encode(spec)
        found = self._credentials
        proof = sign_job(data, found.key_pair, dry_run=dry_run) if found.bound else ""
        job = wire.Job(protocol=PROTOCOL, spec=data, proof=proof, dry_run=dry_run)
        return Run(str(self._call("Submit", job).run_id), self)

    def explain(self, spec: JobSpec) -> dict[str, JsonObject]:
        """Site by site: would it allow, refuse or ask its custodian, and why. Nothing starts."""
        state = self.submit(spec, dry_run=True).wait(raise_if_refused=False)
        return {site: {"standing": m["standing"], **m["decision"]} for site, m in state["sites"].items()}

    def job(
        self,
        *,
        release: str,
        datasets: Iterable[str],
        evaluate_only: Iterable[str] = (),
        rounds: int | None = None,
        local_epochs: int | None = None,
        profile: str = "full",
        config: Mapping[str, Any] | None = None,
        strategy: str = "fedavg",
        personalise: None = None,
        baseline: Literal["local"] | None = None,
        min_sites: int | None = None,
        start: Literal["all", "quorum"] = "all",
        round_deadline: str = "2h",
        keep: Literal["best", "last", "all"] = "best",
        on_dropout: Literal["continue", "wait", "abort"] = "continue",
        retain: Mapping[str, int] | None = None,
        early_stopping: Mapping[str, float] | None = None,
        on_divergence: Mapping[str, Any] | None = None,
        start_from: Mapping[str, Any] | None = None,
        seed: int = 1,
        name: str = "run",
    ) -> JobSpec:
        """A job, with the release's digest and its profile's rounds filled in. Raises BadJob.

        Args:
            datasets: `site/dataset`, one per site; those under `evaluate_only` are tested on and never trained on.
            config: settings of the release that differ from its profile.
            min_sites: fewest training sites to begin and go on with; all of them when not given.
            start: `all` waits for every site's answer; `quorum` begins as soon as `min_sites` allow the run, and a site
                that answers later joins then.
            round_deadline: `90s`, `30m`, `2h`: how long a step waits for a site.
            keep: which round's model is evaluated and exported: the `best` by validation Dice, or the `last`; `all`:
                the best, and the models of all rounds stay at the centre.
            on_dropout: a site falls silent or misses the deadline: `continue` with the others, or, with fewer than
                `min_sites`, wait for one more deadline and then fail; `wait` for it until the deadline, and for
                `min_sites` without end; `abort` the run. Whoever comes back joins the next step.
            retain: of which rounds the centre keeps the model, sealed, so that one can go on from it: those of the
                `last` rounds, the `best` one (1 or 0), and `every` so many rounds (0: none).
                `{"last": 2, "best": 1, "every": 0}` when not given.
            early_stopping: `{"patience": 5, "min_delta": 0.0}` ends the training when the validation Dice has not grown
                by more than `min_delta` for `patience` rounds; None trains all rounds.
            on_divergence: a site's training loss rises in `rounds` rounds on end: `flag` it, or `pause` the run until
                you resume it. `{"rounds": 3, "action": "flag"}` when not given.
            start_from: `{"run": run_id, "round": 12}`: begin with that model and its plan, without a round with that
                run's best; it must be yours and of the same release. The learning rate starts anew.
            seed: of weights, batches and splits; the same job with the same seed and sites gives the same weights.
        """
        known = {row["release"]: row for row in self.releases()}
        if release not in known:
            raise BadJob(f"the registry has no release {release!r}; it has {', '.join(sorted(known)) or 'none'}")
        row = known[release]
        if row["status"] != "published":
            raise RefusedByGovernance(row["status"], f"{release} may not be used: {row['status']}")
        if profile not in row["profiles"]:
            raise BadJob(f"{release} has no profile {profile!r}; it has {', '.join(sorted(row['profiles']))}")
        if isinstance(datasets, str) or isinstance(evaluate_only, str):
            raise BadJob("datasets and evaluate_only are lists: [site-a/ms-trial, site-b/ms-cohort]")
        if not isinstance(config, Mapping | None):
            raise BadJob("config holds settings of the release, as `name: value`")
        evaluated = tuple(evaluate_only)
        named = (*(d for d in datasets if d not in evaluated), *evaluated)
        settings = dict(config or {})
        if local_epochs is not None:
            settings["local_epochs"] = local_epochs
        begins_with = None if start_from is None else _part("start_from", StartFrom, start_from)
        stopping = None if early_stopping is None else _part("early_stopping", EarlyStopping, early_stopping)
        try:
            return JobSpec(
                name=name,
                release=release,
                digest=row["digest"],
                datasets=named,
                evaluate_only=evaluated,
                rounds=rounds if rounds is not None else row["profiles"][profile]["rounds"],
                profile=profile,
                config=settings,
                strategy=strategy,
                personalise=personalise,
                baseline=baseline,
                min_sites=min_sites if min_sites is not None else len(named) - len(evaluated),
                start=start,
                round_deadline_s=seconds(round_deadline),
                keep=keep,
                on_dropout=on_dropout,
                retain=_part("retain", Retention, retain or {}),
                early_stopping=stopping,
                on_divergence=_part("on_divergence", OnDivergence, on_divergence or {}),
                start_from=begins_with,
                seed=seed,
                nonce=secrets.token_urlsafe(24),
            )
        except ValidationError as error:
            raise BadJob(_first_problem("", error)) from error

    def run_federated(self, **arguments: Any) -> Run:
        """Build, sign and submit a job; the arguments are those of `job`."""
        return self.submit(self.job(**arguments))

    # ------------------------------------------------------------ for Run

    def again(self, run_id: str, **changes: Any) -> Run:
        """A job like that of an earlier run, but for `changes`. Raises BadJob."""
        spec = json.loads(self._signed(run_id))
        given = {key: spec[key] for key in _SAME_AGAIN} | {"round_deadline": f"{spec['round_deadline_s']}s"}
        return self.submit(self.job(**(given | changes)))

    def show(self, run_id: str) -> JsonObject:
        return self._json(self._call("Show", wire.RunName(run_id=run_id)))

    def abort(self, run_id: str) -> JsonObject:
        return self._json(self._call("Abort", wire.RunName(run_id=run_id)))

    def pause(self, run_id: str) -> JsonObject:
        return self._json(self._call("Pause", wire.RunName(run_id=run_id)))

    def resume(self, run_id: str) -> JsonObject:
        """Sign the very bytes of the run's job again and have it go on. Raises NotNow, BadJob.

        One that has ended is taken up as its next generation, and the signature is good for that one alone: what is
        ended once more stays so, whoever still holds it.
        """
        shown = self.show(run_id)
        generation = int(shown["generation"]) + (shown["ended_at"] is not None)
        proof = sign_job(self._signed(run_id, shown), self._credentials.key_pair, generation=generation)
        return self._json(self._call("Resume", wire.ResumeRun(run_id=run_id, proof=proof)))

    def watch(self, run_id: str, after: int = 0) -> Any:
        """An iterator of (sequence, kind, document). Raises NotConnected when the line is cut."""
        try:
            for event in self._people.Watch(
                wire.WatchRun(run_id=run_id, after=after), metadata=self._signed_in("Watch")
            ):
                yield event.sequence, event.kind, json.loads(event.json)
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def fetch(self, run_id: str, artifact: str, target: Path) -> Path:
        """Download `model` or `weights` of a finished run; whole or not at all."""
        temporary = target.with_name(f".{target.name}.part")
        try:
            with open(temporary, "wb") as file:
                asked = wire.FetchArtifact(run_id=run_id, artifact=artifact)
                for chunk in self._people.Fetch(asked, metadata=self._signed_in("Fetch")):
                    file.write(chunk.data)
        except grpc.RpcError as error:
            temporary.unlink(missing_ok=True)
            raise self._translated(error) from error
        temporary.replace(target)
        return target

    def _signed(self, run_id: str, shown: JsonObject | None = None) -> bytes:
        """The bytes of a run's job. They come from the orchestrator, which nobody has to trust: they are taken only
        if this user's key has signed them before. Raises BadJob."""
        shown, key = shown or self.show(run_id), self._credentials.key_pair
        spec = str(shown["spec_text"]).encode()
        me = User(self.user, self.user, "", "", key.thumbprint, datetime.now(UTC))
        generation = int(shown["generation"])
        if verify_job(spec, str(shown["proof"]), me, proof_required=True, generation=generation) is not None:
            raise BadJob(
                f"run {run_id} was not signed with the key of your credentials, so it is not signed again with it: "
                "use the credentials with which you submitted it, or submit the job anew"
            )
        return spec

    # -------------------------------------------------------------- wire

    def _list(self, what: str) -> list[JsonObject]:
        rows = self._json(self._call("List", wire.ListWhat(what=what)))[what]
        return list(rows)

    def _call(self, method: str, request: Any) -> Any:
        ask = getattr(self._people, method)
        pauses = iter(_ASK_AGAIN_AFTER_S if method in _QUESTIONS else ())
        while True:
            try:
                return ask(request, metadata=self._signed_in(method), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
            except grpc.RpcError as error:
                pause = next(pauses, None) if error.code() is grpc.StatusCode.UNAVAILABLE else None
                if pause is None:
                    raise self._translated(error) from error
            time.sleep(pause)

    def _signed_in(self, method: str) -> tuple[tuple[str, str], ...]:
        """A token that is still good, and a signature over this very call. Raises NotConnected."""
        now = datetime.now(UTC)
        with self._lock:
            if self._file is not None and self._credentials.expiring(now.timestamp()):
                # Another notebook may have renewed it: many providers take a refresh token once only.
                there = Credentials.read(self._file)
                if (there.key, there.endpoint) == (self._credentials.key, self._credentials.endpoint):
                    self._credentials = there
            renewed = self._renew(self._credentials, now.timestamp())
            if renewed is not self._credentials:
                self._credentials = renewed
                if self._file is not None:
                    renewed.write(self._file)
        token, key = renewed.token, renewed.key_pair
        call = sign_call(PEOPLE_METHOD + method, token, key, now, secrets.token_urlsafe(16))
        return (("authorization", f"Bearer {token}"), (CALL_PROOF, call))

    @staticmethod
    def _json(document: wire.Document) -> JsonObject:
        return dict(json.loads(document.json))

    def _translated(self, error: grpc.RpcError) -> Exception:
        details = error.details() or error.code().name
        match error.code():
            case grpc.StatusCode.PERMISSION_DENIED:
                code, _, message = details.partition(": ")
                return RefusedByGovernance(code, message or details)
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.NOT_FOUND:
                return BadJob(details)
            case grpc.StatusCode.FAILED_PRECONDITION:
                return NotNow(details)
            case grpc.StatusCode.UNAUTHENTICATED:
                return NotConnected(f"the orchestrator does not know you: {details}")
            case _:
                where = self._credentials.endpoint
                return NotConnected(f"the orchestrator at {where} does not answer: {details}")


def _part(argument: str, kind: type[D], given: Mapping[str, Any]) -> D:
    """A document inside the job. Raises BadJob."""
    if not isinstance(given, Mapping):
        raise BadJob(f"{argument}: {given!r:.80} is no mapping; it takes {', '.join(kind.model_fields)}")
    try:
        return kind(**given)
    except ValidationError as error:
        if unknown := sorted(set(given) - set(kind.model_fields)):
            raise BadJob(f"{argument} has no {unknown[0]!r}; it takes {', '.join(kind.model_fields)}") from error
        raise BadJob(_first_problem(argument, error)) from error


def _first_problem(argument: str, error: ValidationError) -> str:
    """`retain.last: Input should be greater than 0`: where, and what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in (argument, *first["loc"]) if part) or "the job"
    return f"{where}: {first['msg']}"


_connected: Client | None = None


def connect(endpoint: str | None = None, credentials: Path | str | None = None) -> Client:
    """The federation of your credentials. Raises NotConnected.

    Args:
        endpoint: `https://host[:port]`; the credentials' own when not given.
        credentials: a credentials file; `MSFL_CREDENTIALS` or the user's own when not given.
    """
    global _connected
    file = Path(credentials) if credentials else Credentials.default_file()
    found = Credentials.read(file)
    if endpoint is not None:
        host = endpoint.removeprefix("https://").rstrip("/")
        host = host if ":" in host else f"{host}:443"
        found = replace(found, endpoint=host)
    _connected = Client(found, None if endpoint else file)
    return _connected


def run_federated(**arguments: Any) -> Run:
    """Submit a job at the federation you are connected to; the arguments are those of `Client.job`."""
    return (_connected or connect()).run_federated(**arguments)


def attach(run_id: str) -> Run:
    """A run of yours that goes on, or has ended: the notebook that began it may be long closed. Raises BadJob.

    `attach(run_id).watch()` shows the same live view as the first time: all that has happened, then what happens.
    """
    return (_connected or connect()).run(run_id)
