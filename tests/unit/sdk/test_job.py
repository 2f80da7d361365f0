"""`msfl job` and the arguments of a job: what is printed, what the exit code says, what a wrong argument is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from msfl.sdk import client as client_module
from msfl.sdk import main as main_module
from msfl.sdk.client import BadJob, Client, NotNow, RefusedByGovernance
from msfl.sdk.job import told_state
from msfl.sdk.run import Run

JsonObject = dict[str, Any]


def state(**changes: Any) -> JsonObject:
    calm = {
        "run_id": "run-1",
        "phase": "running",
        "reason": "",
        "paused": False,
        "pause_reason": "",
        "waiting_for": "",
        "waiting_for_sites": [],
        "submitted_at": 1_800_000_000.0,
        "spec": {
            "name": "story", "rounds": 3, "min_sites": 2, "baseline": None, "on_dropout": "continue",
            "early_stopping": None,
        },
        "step": {"task_id": "train/2", "waiting": ["site-a"]},
        "sites": {
            "site-a": {"standing": "accepted", "absent": False, "code": "", "trains": True, "decision": {}},
            "site-b": {"standing": "accepted", "absent": True, "code": "silent", "trains": True, "decision": {}},
        },
        "rounds": [{"validation_dice": 0.5}],
        "best_round": 1,
    }  # fmt: skip
    return calm | changes


class FakePeople:
    """The centre as a client sees it: one run, which does what it is asked or raises `troubles`."""

    def __init__(self, **changes: Any) -> None:
        self.now = state(**changes)
        self.troubles: Exception | None = None
        self.asked_again: JsonObject = {}

    def run(self, run_id: str) -> Run:
        return Run(run_id, self)

    def again(self, run_id: str, **changes: Any) -> Run:
        self.asked_again = {"like": run_id, **changes}
        return Run("run-2", self)

    def runs(self) -> list[JsonObject]:
        return [{"run_id": "run-1", "name": "story", "phase": "running", "paused": self.now["paused"], "rounds": 1}]

    def show(self, run_id: str) -> JsonObject:
        return self.now

    def pause(self, run_id: str) -> JsonObject:
        return self._change(paused=True)

    def resume(self, run_id: str) -> JsonObject:
        return self._change(paused=False)

    def abort(self, run_id: str) -> JsonObject:
        return self._change(phase="aborted", step=None)

    def watch(self, run_id: str, after: int = 0) -> Iterator[tuple[int, str, JsonObject]]:
        yield 1, "AbortRequested", {"event": "AbortRequested", "at": 1_800_000_001.0, "by": "ada"}

    def fetch(self, run_id: str, artifact: str, target: Path) -> Path:
        raise AssertionError

    def _change(self, **changes: Any) -> JsonObject:
        if self.troubles is not None:
            raise self.troubles
        self.now = self.now | changes
        return self.now


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> FakePeople:
    fake = FakePeople()
    monkeypatch.setattr(client_module, "_connected", fake)
    monkeypatch.setattr("msfl.sdk.job.connect", lambda: fake)
    return fake


def msfl(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the console script."""
    monkeypatch.setattr(sys, "argv", ["msfl", *arguments])
    try:
        with pytest.raises(SystemExit) as ended:
            main_module.main()
    finally:
        structlog.reset_defaults()  # Its log lines went to a standard error of this test alone.
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "release: a:1.0.0\ndatasets: [site-a/x]\nround: 3\n",
            "sets round; the arguments of run_federated are release,",
        ),
        ("release: a:1.0.0\n", "does not say datasets"),
        ("release: &x a:1.0.0\n", "job.yaml:1: an anchor (&)"),
        ("release\n", "must hold the arguments of run_federated"),
    ],
)
def test_a_job_file_that_is_wrong_is_told_so_in_one_line(
    people: FakePeople,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    text: str,
    said: str,
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    assert msfl(monkeypatch, "job", "submit", str(file)) == 1
    told = capsys.readouterr().err
    assert told.startswith("failed: ")
    assert said in told
    assert told.count("\n") == 1


def test_a_file_that_cannot_be_opened_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = tmp_path / "[red]no.token"  # What people call files is no markup.
    assert msfl(monkeypatch, "gateway", "enrol", str(missing), "--home", str(tmp_path / "home")) == 1
    assert capsys.readouterr().err == f"failed: {missing}: No such file or directory\n"


@pytest.mark.parametrize(("refusing", "code"), [((), 0), (("site-c",), 0), (("site-b", "site-c"), 3)])
def test_an_explanation_that_leaves_too_few_sites_exits_as_refused(
    people: FakePeople, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusing: tuple[str, ...], code: int
) -> None:
    def explain(spec: Any) -> JsonObject:
        no = {"code": "no_policy", "message": "site has no asset policy."}
        return {
            site: {"standing": "refused", "refusal": no} if site in refusing else {"standing": "accepted"}
            for site in ("site-a", "site-b", "site-c")
        }

    monkeypatch.setattr(people, "explain", explain, raising=False)
    monkeypatch.setattr(people, "job", lambda **_: SimpleNamespace(min_sites=2), raising=False)
    file = tmp_path / "job.yaml"
    file.write_text("release: a:1.0.0\ndatasets: [site-a/x, site-b/x, site-c/x]\n")
    assert msfl(monkeypatch, "job", "submit", str(file), "--explain") == code


def test_pause_resume_and_abort_say_how_the_run_stands(
    people: FakePeople, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, shown in (("pause", "running, paused"), ("resume", "running"), ("abort", "aborted")):
        assert msfl(monkeypatch, "job", command, "run-1") == 0
        assert capsys.readouterr().out == f"run run-1 is {shown}\n"
        assert msfl(monkeypatch, "job", command, "run-1", "--json") == 0
        assert json.loads(capsys.readouterr().out)["phase"] == shown.partition(",")[0]


@pytest.mark.parametrize(
    ("trouble", "code", "word"),
    [
        (
            NotNow("run run-1 is finished and cannot be resumed: use run.extend(rounds=…)"),
            1,
            "failed: run run-1 is finished",
        ),
        (BadJob("you have no run run-1; `msfl job list` names yours"), 1, "failed: you have no run"),
        (
            RefusedByGovernance("proof_invalid", "It was made for another job."),
            3,
            "refused: It was made for another job.",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    people: FakePeople,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: Exception,
    code: int,
    word: str,
) -> None:
    people.troubles = trouble
    assert msfl(monkeypatch, "job", "resume", "run-1") == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(word)
    assert said.err.count("\n") == 1


@pytest.mark.usefixtures("people")
def test_wrong_usage_is_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert msfl(monkeypatch, "job", "resume") == 2


def test_a_watched_run_that_was_aborted_failed(
    people: FakePeople, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    people.now = state(phase="aborted", reason="aborted by ada")
    assert msfl(monkeypatch, "job", "watch", "run-1") == 1
    assert capsys.readouterr().out == "aborted by ada\n"
    assert msfl(monkeypatch, "job", "watch", "run-1", "--json") == 1
    said = capsys.readouterr()
    assert [json.loads(line)["kind"] for line in said.out.splitlines()] == ["AbortRequested"]
    assert said.err == "failed: run run-1 aborted: aborted by ada\n"


def test_a_watched_run_that_was_refused_is_three(people: FakePeople, monkeypatch: pytest.MonkeyPatch) -> None:
    people.now = state(phase="refused", reason="fewer than 2 sites accept")
    assert msfl(monkeypatch, "job", "watch", "run-1") == 3


@pytest.mark.usefixtures("people")
def test_list_and_show_are_text_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("list",), ("show", "run-1")):
        assert msfl(monkeypatch, "job", *command) == 0
        assert "story" in capsys.readouterr().out
        assert msfl(monkeypatch, "job", *command, "--json") == 0
        assert json.loads(capsys.readouterr().out)


def test_how_a_run_stands_is_told_in_a_few_lines() -> None:
    told = told_state(
        state(paused=True, pause_reason="paused by ada", waiting_for="disk", waiting_for_sites=["site-b"])
    )
    assert told == [
        "run run-1 (story) is running, paused",
        "paused by ada; `msfl job resume run-1` lets it go on",
        "now: train/2, at site-a",
        "waits for site-b: 2 sites are needed",
        "waits for room on the centre's disk; its operator must make some",
        "  site-a: accepted",
        "  site-b: accepted, away: nothing is heard of the site (silent)",
        "rounds: 1 of 3, validation Dice 0.500, best round 1",
    ]


# ------------------------------------------------------------------- the job


class KnownRelease(Client):
    """A client that knows one release and has no line."""

    def __init__(self) -> None:
        pass

    def releases(self) -> list[JsonObject]:
        profiles = {"full": {"rounds": 5}}
        row = {"release": "toy:1.0.0", "status": "published", "digest": "sha256:" + "a" * 64, "profiles": profiles}
        return [row]


def job(**changes: Any) -> Any:
    given = {"release": "toy:1.0.0", "datasets": ["site-a/d", "site-b/d"]}
    return KnownRelease().job(**(given | changes))


def test_a_job_has_settings_for_its_survival() -> None:
    plain = job()
    assert (plain.on_dropout, plain.early_stopping) == ("continue", None)
    assert plain.retain.model_dump() == {"last": 2, "best": 1, "every": 0}
    assert plain.on_divergence.model_dump() == {"rounds": 3, "action": "flag"}
    asked = job(
        on_dropout="wait",
        retain={"last": 3, "every": 10},
        early_stopping={"patience": 5, "min_delta": 0.01},
        on_divergence={"action": "pause"},
    )
    assert asked.retain.model_dump() == {"last": 3, "best": 1, "every": 10}
    assert asked.early_stopping.model_dump() == {"patience": 5, "min_delta": 0.01}
    assert asked.on_divergence.model_dump() == {"rounds": 3, "action": "pause"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"on_dropout": "panic"}, "on_dropout: Input should be 'continue', 'wait' or 'abort'"),
        ({"retain": {"last": 0}}, "retain.last: Input should be greater than or equal to 1"),
        ({"retain": {"first": 1}}, "retain has no 'first'; it takes last, best, every"),
        ({"retain": 3}, "retain: 3 is no mapping; it takes last, best, every"),
        ({"early_stopping": {}}, "early_stopping.patience: Field required"),
        ({"early_stopping": {"patience": 2, "min_delta": -1.0}}, "early_stopping.min_delta"),
        ({"on_divergence": {"action": "abort"}}, "on_divergence.action: Input should be 'flag' or 'pause'"),
    ],
)
def test_a_wrong_setting_is_named(wrong: JsonObject, told: str) -> None:
    with pytest.raises(BadJob) as raised:
        job(**wrong)
    assert str(raised.value).startswith(told)


def test_the_sdk_loads_no_numpy_and_no_torch() -> None:
    heavy = "[m for m in ('numpy', 'torch', 'matplotlib', 'jinja2') if m in sys.modules]"
    code = f"import sys, msfl.sdk, msfl.sdk.live, msfl.sdk.job; print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_extending_a_run_asks_for_a_new_one_that_starts_from_its_model() -> None:
    people = FakePeople()
    again = people.run("run-1").extend(20, round=2, config={"initial_lr": 0.001})
    assert again.run_id == "run-2"
    asked = people.asked_again
    assert (asked["rounds"], asked["start_from"]) == (20, {"run": "run-1", "round": 2})
    assert asked["config"] == {"initial_lr": 0.001}
    people.run("run-1").extend(5)
    assert people.asked_again["start_from"] == {"run": "run-1"}
