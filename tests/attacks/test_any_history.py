"""Whatever happens to a site, in whatever order: nothing runs that a plain reading of what happened forbids.

    custodians    sign policies of any version, withdraw them, revoke, confirm runs, hand over, set the clock right
    the centre    publishes lists and timestamps; serves any of them, in any order, or forged ones
    reviewers     one more approves, one rejects
    time          goes on, or the machine's clock is set back
    the gateway   is restarted; its memory is lost, or put back from an older copy
    the user      asks for runs, and they start

`Plain` is a second, independent account: it keeps what was said and when, and knows nothing of envelopes, marks, tables
or threads. It must agree with the site about each offer, confirmation and start, and about each worker that is to end.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fakes.governance import LATER, NOW, key, member
from fakes.governed_sites import PATIENCE_S, GovernedSite, later
from msfl.gateway.confirmations import confirmation, signed
from msfl.gateway.home import write
from msfl.gateway.site_run import RunAtSite
from msfl.gateway.standing import next_of
from msfl.policies.documents import format_utc, parse_utc
from msfl.policies.encoding import encode
from msfl.policies.envelope import SITE_ROOT, sign
from msfl.protos.audit_log import read_entries
from msfl.protos.messages import StopOrder, TrustPapers
from msfl.registry.publish import add_review

POLICY = "ms-trial-lesion-segmentation"
POLICY_EXPIRES = datetime(2027, 5, 1, tzinfo=UTC)
LEEWAY = timedelta(minutes=5)
MOST_RUNS = 3
KINDS = {
    "auto": ("mode: auto", "mode: auto"),
    "confirm": ("mode: auto", "mode: confirm"),
    "not ada": ("users: [ada@uni.example]", "users: [bob@uni.example]"),
}
# What can be revoked. "raya" is one of three reviewers, of whom two are needed; the rest ends everything of its kind.
NAMES = ("raya", "cleo", "dora", "rosa", "paul", "release", "policy", "site-b")


@dataclass(frozen=True)
class Paper:
    """A policy as it was signed."""

    version: int
    kind: str
    by: frozenset[str]


@dataclass(frozen=True)
class Said:
    """One publication of the federation: a list, which only grows, and the timestamp that names it."""

    number: int
    revoked: frozenset[str]
    at: datetime


@dataclass
class Plain:
    """The account. `heard` is the newest of each that got through; `held` is what the site still has of it."""

    now: datetime = NOW
    latest: datetime = NOW
    custodians: frozenset[str] = frozenset({"cleo"})
    policy: Paper | None = Paper(3, "the first", frozenset({"cleo"}))
    newest: tuple[int, str] = (3, "the first")
    reviewers: frozenset[str] = frozenset({"rosa", "rui"})
    rejected: bool = False
    revoked: frozenset[str] = frozenset()
    heard: dict[str, int] = field(default_factory=dict)
    held: dict[str, Said] = field(default_factory=dict)
    begun: int = 0

    def policy_now(self) -> tuple[Paper | None, str]:
        """The policy that counts; or why there is none."""
        paper = self.policy
        if paper is None:
            return None, "no_policy"
        if not paper.by & self.custodians:
            return None, "wrong_signer"
        if not paper.by & self.custodians - self.revoked:
            return None, "key_revoked"
        if "policy" in self.revoked:
            return None, "policy_revoked"
        version, kind = self.newest
        if paper.version < version or (paper.version == version and paper.kind != kind):
            return None, "version_rolled_back"
        return paper, ""

    def look(self) -> None:
        """A policy that counted once is the newest from then on; a clock that is not behind is believed."""
        paper, _ = self.policy_now()
        if paper is not None:
            self.newest = (paper.version, paper.kind)
        if not self.clock_is_behind():
            self.latest = max(self.latest, self.now)

    def clock_is_behind(self) -> bool:
        return self.now < self.latest - LEEWAY

    def against_release(self, reviewers: frozenset[str], rejected: bool) -> set[str]:
        why = set()
        if "paul" in self.revoked:
            why.add("key_revoked")
        if "release" in self.revoked:
            why.add("release_revoked")
        if rejected:
            why.add("release_rejected")
        if len(reviewers - self.revoked) < 2:
            why |= {"too_few_reviewers", "release_not_reviewed"}
        return why

    def against_any_run(self) -> set[str]:
        """Why no run may begin now, whichever it is."""
        why = set()
        if self.clock_is_behind():
            why.add("clock_set_back")
        stamp, listed = self.held.get("timestamp"), self.held.get("revocations")
        if stamp is None or stamp.at + timedelta(days=1) <= self.now:
            why.add("trust_stale")
        elif stamp.at > self.now + LEEWAY:
            why.add("clock_set_back")
        if stamp is not None and stamp.number < self.heard["timestamp"]:
            why.add("version_rolled_back")  # Also one that has expired since: either is a reason.
        elif stamp is None or listed is None or listed.number < max(stamp.number, self.heard["revocations"]):
            why.add("trust_stale")
        return why

    def against_beginning(self) -> set[str]:
        """Why no run may begin now; empty: it may."""
        why = self.against_release(self.reviewers, self.rejected) | self.against_any_run()
        if "site-b" in self.revoked:
            why.add("site_revoked")
        paper, reason = self.policy_now()
        if paper is None:
            return why | {reason}
        if paper.kind == "not ada":
            why.add("user_not_named")
        if self.now >= POLICY_EXPIRES:
            why.add("policy_expired")
        if self.begun >= MOST_RUNS:
            why.add("run_budget_spent")
        return why

    def against(self, run: Run) -> set[str]:
        """Why a run that was let in may not go on."""
        why = self.against_release(run.reviewers, rejected=False)
        paper, _ = self.policy_now()
        if paper is None or (paper.version, paper.kind) != (run.paper.version, run.paper.kind):
            why |= {"no_policy", "key_revoked", "policy_revoked"}
        if run.confirmed_by and run.confirmed_by not in self.custodians - self.revoked:
            why |= {"key_revoked", "wrong_signer"}
        if self.now >= POLICY_EXPIRES:
            why.add("policy_expired")
        return why


@dataclass
class Run:
    """The newest run at the site: `parked`, `let in` or `running`."""

    id: str
    stage: str
    paper: Paper
    reviewers: frozenset[str]
    confirmed_by: str = ""


class AnyHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="msfl-history-"))
        self.site = GovernedSite(self.folder)
        self.plain = Plain()
        self.published: list[tuple[Said, TrustPapers]] = []
        self.root = self.site.site_root
        self.run: Run | None = None
        self.counter = self.started = 0
        self.copy: tuple[bytes, dict[str, Said], datetime] | None = None

    def teardown(self) -> None:
        self.site.close()
        shutil.rmtree(self.folder)

    @initialize(kind=st.sampled_from(["auto", "confirm"]), steps=st.integers(0, 3))
    def in_order(self, kind: str, steps: int) -> None:
        self.all_is_put_in_order(kind)
        for _ in range(steps):
            self.the_run_goes_on()

    def after(self) -> None:
        """As a gateway does every few seconds; what runs is looked at once more."""
        site, plain = self.site, self.plain
        site.standing.look_at_words(site.now)
        site.standing.tick(site.now)
        site.standing.policies(site.now)
        plain.look()
        run = self.run
        if run is not None and run.stage != "parked":
            why = plain.against(run)
            site.runs[-1].look_again()
            if why:
                if run.stage == "running":
                    assert site.runtime.ended.wait(PATIENCE_S)
                self._over(why)
        assert len(site.audited("worker starts")) == self.started, "something started that nobody allowed"

    def _over(self, why: set[str]) -> None:
        """The run has ended here, and the site says why to whoever asks for its next task."""
        self.counter += 1
        self.site.order("start", nth=self.counter)
        assert self.site.failure() in why
        self.run = None

    # -------------------------------------------------------------------------------------------- custodians

    @rule(
        version=st.integers(3, 6),
        kind=st.sampled_from(list(KINDS)),
        by=st.frozensets(st.sampled_from(["cleo", "cleo", "dora", "otto", "mallory"]), min_size=1, max_size=2),
    )
    def custodians_sign(self, version: int, kind: str, by: frozenset[str]) -> None:
        text = self.site.world.policy_yaml.replace(*KINDS[kind]).replace("max_runs: 5", f"max_runs: {MOST_RUNS}")
        self.site.sign_policy(version, tuple(sorted(by)), text)
        self.plain.policy = Paper(version, kind, by)
        self.after()

    @rule(kind=st.sampled_from(["auto", "confirm"]))
    def all_is_put_in_order(self, kind: str) -> None:
        """As far as it can be, so that a history is not over with the first thing that went wrong."""
        self._clock(max(self.plain.now, self.plain.latest))
        self.custodians_sign(self.plain.newest[0] + 1, kind, self.plain.custodians)
        self.federation_says(None)
        self.centre_sends(0, "both")

    @rule()
    def custodians_withdraw_the_policy(self) -> None:
        (self.site.home.root / "policies/one.dsse").unlink(missing_ok=True)
        self.plain.policy = None
        self.after()

    @rule(name=st.sampled_from(["raya", "cleo", "rosa", "release", "policy"]))
    def custodian_revokes(self, name: str) -> None:
        kind, what = self._named(name)
        self.site.memory.say(kind, what, "cleo")
        self.plain.revoked |= {name}
        self.after()

    def _named(self, name: str) -> tuple[str, str]:
        if name in ("release", "policy"):
            return name, self.site.digest if name == "release" else f"site-a/{POLICY}"
        return ("site", name) if name.startswith("site") else ("key", key(name).id)

    @rule(
        to=st.sampled_from([("cleo",), ("dora",), ("cleo", "dora")]),
        by=st.frozensets(st.sampled_from(["cleo", "dora", "otto"]), min_size=1),
        on=st.sampled_from([1, 1, 1, 2]),
    )
    def custodians_hand_over(self, to: tuple[str, ...], by: frozenset[str], on: int) -> None:
        following = later(self.root, custodians=tuple(member(name) for name in to))
        following = following.model_copy(update={"version": self.root.version + on})
        write(next_of(self.site.home.site_root_file), sign(encode(following), SITE_ROOT, [key(n) for n in sorted(by)]))
        if on == 1 and by & self.plain.custodians and by & set(to):
            self.plain.custodians = frozenset(to)
            self.root = following
        self.after()

    # --------------------------------------------------------------------------------- federation and centre

    @rule(name=st.sampled_from([None, None, *NAMES]))
    def federation_says(self, name: str | None) -> None:
        number = len(self.published) + 1
        before = self.published[-1][0].revoked if self.published else frozenset()
        said = Said(number, before | ({name} if name else set()), max(self.plain.now, self.plain.latest))
        kinds: dict[str, list[str]] = {"keys": [], "releases": [], "policies": [], "sites": []}
        for kind, what in map(self._named, sorted(said.revoked)):
            kinds["policies" if kind == "policy" else f"{kind}s"].append(what)
        papers = self.site.papers(number, said.at, **{k: tuple(v) for k, v in kinds.items()})
        self.published.append((said, papers))

    @rule(which=st.integers(0, 2), parts=st.sampled_from(["both", "both", "list", "timestamp"]))
    def centre_sends(self, which: int, parts: str) -> None:
        """`which`: how many publications ago."""
        said, papers = self.published[-1 - min(which, len(self.published) - 1)]
        if parts == "list":
            papers = replace(papers, timestamp=b"")
        if parts == "timestamp":
            papers = replace(papers, revocations=b"")
        self.site.hear(papers)
        for part, sent in (("revocations", papers.revocations), ("timestamp", papers.timestamp)):
            if sent and said.number >= self.plain.heard.get(part, 0):
                self.plain.heard[part] = said.number
                self.plain.held[part] = said
                if part == "revocations":
                    self.plain.revoked |= said.revoked
        self.after()

    @rule(name=st.sampled_from(NAMES))
    def federation_revokes_and_the_centre_says_so(self, name: str) -> None:
        self.federation_says(name)
        self.centre_sends(0, "both")

    @rule(by=st.sampled_from(["mallory", "paul", "cleo"]))
    def somebody_else_sends(self, by: str) -> None:
        number = len(self.published) + 5
        listed = self.site.revocations(number, by=by)
        stamp = self.site.timestamp(listed, number, self.site.now, by=by)
        assert self.site.hear(TrustPapers((), listed, stamp)) == ["wrong_signer", "wrong_signer"]
        self.after()

    @rule(verdict=st.sampled_from(["approve", "approve", "approve", "reject"]))
    def another_reviewer_speaks(self, verdict: str) -> None:
        statement = self.site.world.statement.model_copy(update={"digest": self.site.digest})
        review = self.site.world.review("raya", statement=statement, verdict=verdict)
        add_review(self.site.image.registry, self.site.digest, review)
        if verdict == "approve":
            self.plain.reviewers |= {"raya"}
        else:
            self.plain.rejected = True

    # -------------------------------------------------------------------------------------- clock and gateway

    @rule(hours=st.sampled_from([1, 6, 13, 24, 24 * 20]))
    def time_goes_on(self, hours: int) -> None:
        self._clock(min(self.plain.now + timedelta(hours=hours), LATER - timedelta(days=2)))

    @rule(hours=st.sampled_from([1, 6, 24, 24 * 20]))
    def the_clock_is_set_back(self, hours: int) -> None:
        self._clock(max(self.plain.now - timedelta(hours=hours), NOW))

    @precondition(lambda self: self.plain.clock_is_behind())
    @rule()
    def the_clock_is_put_right(self) -> None:
        self._clock(self.plain.latest)

    def _clock(self, now: datetime) -> None:
        self.site.now = self.plain.now = now
        self.after()

    @precondition(lambda self: self.plain.clock_is_behind())
    @rule()
    def custodian_says_that_the_clock_is_right(self) -> None:
        self.site.memory.say("clock", format_utc(self.site.now), "cleo")
        self.plain.latest = self.plain.now
        self.after()

    @rule()
    def somebody_copies_the_memory(self) -> None:
        self.copy = (self.site.home.memory_file.read_bytes(), dict(self.plain.held), self.plain.latest)

    @rule(memory=st.sampled_from(["kept", "kept", "lost", "put back"]))
    def the_gateway_is_restarted(self, memory: str) -> None:
        site, plain, copy = self.site, self.plain, self.copy

        def meanwhile() -> None:
            if memory == "lost":
                site.home.memory_file.unlink()
                plain.held, plain.latest = {}, NOW
            elif memory == "put back" and copy is not None:
                site.home.memory_file.write_bytes(copy[0])
                plain.held, plain.latest = dict(copy[1]), copy[2]

        site.restart(meanwhile)
        plain.latest = max(plain.latest, self._latest_in_the_log())
        if (run := self.run) is not None:
            site.runs.append(RunAtSite(run.id, site.around))  # It comes back from its record.
            why = plain.against(run)
            if run.stage != "parked" and why:
                self._over(why)
            else:
                site.runs[-1].hear(StopOrder(run.id, "aborted"))
                self.run = None
        assert site.runtime.started == [], "a restart starts nothing by itself"
        self.after()

    def _latest_in_the_log(self) -> datetime:
        latest = NOW
        for entry in read_entries(self.site.home.root / "audit/log.jsonl"):
            at = parse_utc(entry.at)
            latest = at if entry.action == "clock accepted" else max(latest, at)
        return latest

    # ---------------------------------------------------------------------------------------------------- runs

    def the_run_goes_on(self) -> None:
        """By one step of what a run is meant to go through."""
        match self.run:
            case None:
                self.ada_asks_for_a_run()
            case Run(stage="parked"):
                self.somebody_confirms(min(self.plain.custodians - self.plain.revoked, default="cleo"), other=False)
            case Run(stage="let in"):
                self.it_is_to_start()
            case _:
                self.the_run_is_aborted()

    goes_on_once = rule()(the_run_goes_on)
    goes_on_again = rule()(the_run_goes_on)
    goes_on_and_on = rule()(the_run_goes_on)

    @rule(kind=st.sampled_from(["auto", "confirm"]))
    def a_run_from_the_beginning(self, kind: str) -> None:
        if self.run is None:
            self.all_is_put_in_order(kind)
            self.the_run_goes_on()

    @rule(kind=st.sampled_from(["the timestamp is old", "the clock is set back"]))
    def a_run_too_late_or_too_early(self, kind: str) -> None:
        """All else is in order, as far as it can be."""
        if self.run is None:
            self.all_is_put_in_order("auto")
            self.time_goes_on(24 if kind == "the timestamp is old" else 13)
            if kind == "the clock is set back":
                self.the_clock_is_set_back(6)
            self.the_run_goes_on()

    def ada_asks_for_a_run(self) -> None:
        self.counter += 1
        why = self.plain.against_beginning()
        verdict = self.site.offer(f"run-{self.counter}", rounds=1)
        assert self.site.audited("run decided")[-1] == ("" if verdict in ("allow", "confirm") else verdict)
        if why:
            event("an offer is refused")
            assert verdict in why
            return
        event("an offer is let in")
        paper = self.plain.policy
        assert paper is not None
        assert verdict == ("confirm" if paper.kind == "confirm" else "allow")
        stage = "parked" if verdict == "confirm" else "let in"
        self.run = Run(f"run-{self.counter}", stage, paper, self.plain.reviewers)

    @precondition(lambda self: self.run is not None and self.run.stage == "parked")
    @rule(by=st.sampled_from(["cleo", "cleo", "dora", "otto", "mallory"]), other=st.booleans())
    def somebody_confirms(self, by: str, other: bool) -> None:
        """`other`: a yes to another run."""
        assert self.run is not None
        asked = self.site.home.pending()[self.run.id]["asked"]
        self.counter += 1  # The same bytes are looked at once.
        asked["issued"] = format_utc(NOW + timedelta(seconds=self.counter))
        document = confirmation({**asked, "run": "run-of-another-day"} if other else asked)
        self.site.runs[-1].custodian_signed(signed(document, key(by), None))
        answer = self.site.offer_again()
        if other or by not in self.plain.custodians - self.plain.revoked:
            assert answer == "confirm", "it waits on"
            return
        event("a run is confirmed")
        assert (answer, self.site.offer_again()) == ("allow", "allow")
        self.site.line.answers.get(timeout=PATIENCE_S)  # What was said to the offers is said twice to the yes.
        self.run.stage, self.run.confirmed_by = "let in", by
        self.after()

    def it_is_to_start(self) -> None:
        assert self.run is not None
        why = self.plain.against(self.run) | self.plain.against_any_run()
        spent = self.plain.begun >= MOST_RUNS
        self.counter += 1
        self.site.order("start", nth=self.counter)
        code = self.site.failure()
        if why or spent:
            assert code in why | ({"run_budget_spent"} if spent else set())
            self.run = None
        else:
            event("a worker starts")
            assert code == ""
            self.plain.begun += 1
            self.started += 1
            self.run.stage = "running"
        self.after()

    def the_run_is_aborted(self) -> None:
        assert self.run is not None
        self.site.runs[-1].hear(StopOrder(self.run.id, "aborted"))
        if self.run.stage == "running":
            assert self.site.runtime.ended.wait(PATIENCE_S)
        self.run = None


def walk(examples: int) -> None:
    run_state_machine_as_test(
        AnyHistory,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_nothing_runs_that_what_happened_forbids() -> None:
    walk(25)


@pytest.mark.full
def test_nothing_runs_that_what_happened_forbids_for_long() -> None:
    walk(250)  # A gateway that is killed in a history leaves its sockets to this process: a thousand would be too many.
