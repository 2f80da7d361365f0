"""The report of a run: checked before it is written, honest in its first sentence, harmless to open."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from fakes.reports import example_report, refused_report, remark, sha256, troubled_report
from msfl.evaluation import page
from msfl.evaluation.main import report as report_command
from msfl.evaluation.metrics import CaseMetrics, summarise_cases
from msfl.evaluation.report import BadReport, check_report, read_report, schema, write_report

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DRAWN = {"rounds": PNG, "distributions": PNG, "matrix": PNG}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second; most stories about the folder do not need to see the figures."""
    monkeypatch.setattr("msfl.evaluation.report._drawn", lambda figure, kind: PNG)


class Outline(HTMLParser):
    """What a browser would act on: tags, and attributes that fetch or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(re.sub(r"<style>.*?</style>", "", text, count=1, flags=re.DOTALL))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.fetched.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(report: dict[str, Any]) -> str:
    """The words of the page, white space folded."""
    check_report(report)
    return " ".join(Outline(page.html(report, DRAWN, {})).text.split())


# ------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        ({"format": "float32", "unrounded": {}}, "as they are, in 32 bits; nothing is lost"),
        ({"format": "bf16", "unrounded": {}}, "what that cost in Dice is not known"),
        ({"format": "bf16", "unrounded": {"site-b": None}}, "that cost 0.0100 of mean Dice"),
    ],
)
def test_the_page_says_how_weights_travelled_and_what_that_cost(wire: dict[str, Any], said: str) -> None:
    report = example_report()
    for site in wire["unrounded"]:
        report["evaluation"]["federated"][site] = summarise_cases(
            [CaseMetrics(0.60, 0.5, 0.5), CaseMetrics(0.70, 0.5, 0.5)]
        )
        wire["unrounded"][site] = summarise_cases([CaseMetrics(0.61, 0.5, 0.5), CaseMetrics(0.71, 0.5, 0.5)])
    report["wire"] = wire
    assert said in shown(report)


def test_the_schema_is_a_schema_and_the_example_follows_it() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    check_report(example_report())
    check_report(refused_report())
    check_report(troubled_report())


def nested(path: str, value: object) -> dict[str, Any]:
    report = example_report(rounds=2)
    *way, last = path.split(".")
    place: Any = report
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    place[last] = value
    return report


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("schema_version", 2, "schema_version"),
        ("surprise", 1, "surprise"),
        ("release.digest", "1.0.0", "digest"),
        ("policy_hashes.site-a", "md5:0", "policy_hashes"),
        ("data.kind", "clinical", "kind"),
        ("isolation.site-a", {"level": "sandbox"}, "isolation"),
        ("rounds.0.sites.site-a.train_loss", "low", "train_loss"),
        ("rounds.0.sites.site-a.val_dice", 1.5, "val_dice"),
        ("rounds.0.sites.site-a.path", "/data/p1.nii.gz", "path"),
        ("rounds.0.seconds", float("nan"), "finite"),
        ("evaluation.median", {}, "median"),
        ("evaluation.federated.site-a.per_case", [0.5], "site-a"),
        ("evaluation.federated.site-a.n", 9, "add up"),
        ("evaluation.federated.site-x", {"n": None, "withheld": "too_few_cases"}, "site-x"),
        ("evaluation.federated.site-a", {"n": 3, "withheld": "too_few_cases"}, "site-a"),
        ("overlays", {"site-a": "../../etc/passwd"}, "overlays"),
        ("overlays", {"site-a": "figures/overlay-../x.png"}, "overlays"),
    ],
)
def test_a_report_that_breaks_the_rules_is_named_and_not_written(
    path: str, value: object, where: str, tmp_path: Path
) -> None:
    with pytest.raises(BadReport, match=re.escape(where)):
        write_report(nested(path, value), tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", sorted(schema()["required"]))
def test_every_required_part_is_required(missing: str) -> None:
    report = example_report(rounds=1)
    del report[missing]
    with pytest.raises(BadReport, match=missing):
        check_report(report)


# ------------------------------------------------------------------- the answer


def told(*dice: float) -> dict[str, Any]:
    return summarise_cases([CaseMetrics(value, value, value) for value in dice])


def with_results(federated: tuple[float, ...], own: tuple[float, ...]) -> dict[str, Any]:
    report = example_report(rounds=2)
    report["evaluation"] = {"federated": {"site-a": told(*federated)}, "local:site-a": {"site-a": told(*own)}}
    return report


GOOD, BAD, WIDE = (0.70, 0.71, 0.72, 0.73), (0.50, 0.51, 0.52, 0.53), (0.3, 0.5, 0.7, 0.9)


def test_the_answer_names_a_winner_only_beyond_the_margin() -> None:
    assert "The federated model did better, by 0.20" in shown(with_results(GOOD, BAD))
    assert "The sites' own models did better, by 0.20" in shown(with_results(BAD, GOOD))
    assert "these cases do not decide which is better" in shown(with_results(WIDE, GOOD))
    assert "Neither is ahead" in shown(with_results(GOOD, GOOD))


def test_the_answer_says_how_few_cases_there_are() -> None:
    assert "With as few as 4 test cases at a site" in shown(example_report())


def test_generated_data_are_called_synthetic_and_user_data_described_by_their_owner() -> None:
    assert "synthetic lesions on the MNI152 template anatomy; no patient data" in shown(example_report())
    report = example_report()
    report["data"] = {"kind": "user", "description": "three folders"}
    report["sites"]["site-a"] |= {
        "description": "planted lesions, 2 mm",
        "licence": "CC-BY",
        "reference": "Lesjak 2018",
    }
    text = shown(report)
    assert "synthetic" not in text
    for word in ("planted lesions, 2 mm", "CC-BY", "Lesjak 2018"):
        assert word in text


def test_a_refused_run_says_who_refused_and_why() -> None:
    text = shown(refused_report())
    assert "Nothing was trained: site-b refused" in text
    assert "policy_expired" in text
    assert "Every model at every site" not in text
    assert "nothing was started" in text


def test_a_site_that_refused_is_not_counted_as_trained() -> None:
    report = example_report(rounds=2)
    for record in report["rounds"]:
        del record["sites"]["site-b"]
    for sites in report["evaluation"].values():
        del sites["site-b"]
    del report["evaluation"]["local:site-b"], report["isolation"]["site-b"], report["policy_hashes"]["site-b"]
    report["sites"]["site-b"] |= {"n_train": None, "n_val": None, "n_test": None, "spacing": None}
    report["refusals"] = [{"site": "site-b", "code": "no_policy", "message": "No policy names this dataset."}]
    text = shown(report)
    assert "2 sites trained one ms-lesion-nnunet together on 22 cases" in text
    assert "site-b refused to take part" in text
    assert "no policy applied" in text


def test_a_run_that_failed_before_the_first_round_blames_nobody() -> None:
    report = refused_report() | {"refusals": [], "status": "failed"}
    assert "Nothing was trained: the run is failed" in shown(report)
    assert "No site refused." in shown(report)


def test_without_local_models_the_page_claims_no_benefit() -> None:
    report = example_report()
    report["evaluation"] = {"federated": report["evaluation"]["federated"]}
    assert "whether training together helped is not known" in shown(report)


def test_an_evaluate_only_site_is_reported_apart() -> None:
    text = shown(example_report())
    assert "At real-test, which took no part in training, the federated model reached" in text
    assert "evaluates only" in text


def test_a_site_that_withholds_everything_is_left_out_of_the_means() -> None:
    report = example_report()
    for sites in report["evaluation"].values():
        sites["site-c"] = {"n": None, "withheld": "too_few_cases"}
    text = shown(report)
    assert "on the same 16 held-out test cases" in text
    assert "withheld: too_few_cases" in text


def test_every_figure_withheld_still_makes_a_page() -> None:
    report = example_report()
    for sites in report["evaluation"].values():
        for site in sites:
            sites[site] = {"n": None, "withheld": "too_few_cases"}
    assert "No test figures are in this report" in shown(report)


def test_running_unconfined_is_said_twice() -> None:
    text = shown(example_report())
    assert "none (code ran unconfined)" in text
    assert "At least one site ran the release without isolation" in text


# ------------------------------------------------------------------- troubles


def test_troubles_are_told_where_they_happened() -> None:
    text = shown(troubled_report())
    assert "up to 40 rounds and ended after 12, because the validation Dice had not grown for 5 rounds" in text
    assert "1 update of site-b was refused by the centre" in text
    assert "2 rounds went on without a site that was away or late" in text
    assert "site-b: update refused, the update holds NaN or infinity update_not_finite" in text
    assert "site-c: conspicuous, its update is far larger than the others' update_outlier" in text
    assert "site-a: away or late" in text
    assert "offered to its sites 2 times; each decided afresh" in text
    assert "2026-11-24T09:01:00Z paused by ada@uni.example" in text
    assert "Marks above the losses" in text


def test_the_rules_for_troubles_are_told_in_words() -> None:
    text = shown(troubled_report())
    assert "training sites needed 2, in every round" in text
    assert "when a site drops out the run goes on with the others; with too few," in text
    assert "models that are kept of the last 2 rounds and of the best round and of one round in 5" in text
    assert "when the validation Dice has not grown by more than 0.005 for 5 rounds" in text
    assert "for 3 rounds on end: the run pauses" in text


def test_the_table_of_rounds_names_those_that_can_be_gone_on_from() -> None:
    rows = page._round_rows(troubled_report())
    assert [(row["round"], row["model"]) for row in rows] == [
        (1, "–"), (3, "–"), (5, "kept"), (7, "–"), (10, "kept"), (11, "kept, best, tested"), (12, "kept"),
    ]  # fmt: skip


def test_a_run_without_troubles_has_no_word_of_them() -> None:
    text = shown(example_report())
    for word in ("Interruptions", "Marks above", "amiss", "goes wrong"):
        assert word not in text


@pytest.mark.parametrize("kind", ["late", "refused", "flags"])
def test_a_round_that_names_a_stranger_is_no_round(kind: str) -> None:
    report = example_report(rounds=1)
    report["rounds"][0][kind] = ["site-x"] if kind == "late" else [remark("site-x", "update_outlier", "it is")]
    with pytest.raises(BadReport, match="site-x"):
        check_report(report)


# ------------------------------------------------------------------- the page


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


def poisoned() -> dict[str, Any]:
    """Every text that another machine could have written is an attack."""
    report = troubled_report(rounds=12)
    text = json.dumps(report)
    quoted = json.dumps(HOSTILE)[1:-1]
    report |= json.loads(text.replace("site-b", quoted))
    report["name"] = report["purpose"] = report["profile"] = HOSTILE
    report["release"] |= {"name": HOSTILE, "version": HOSTILE, "publisher": HOSTILE, "reviewers": [HOSTILE]}
    report["requested_by"] = {"user": HOSTILE, "organisation": HOSTILE}
    report["data"] = {"kind": "user", "description": HOSTILE, "licence": HOSTILE}
    report["sites"][HOSTILE] |= {"description": HOSTILE, "licence": HOSTILE, "reference": HOSTILE}
    report["refusals"] = [{"site": HOSTILE, "code": HOSTILE, "message": HOSTILE}]
    report["deviations"] = [{"setting": HOSTILE, "stock": HOSTILE, "used": {HOSTILE: [HOSTILE]}}]
    report["plan"][HOSTILE] = report["config"][HOSTILE] = report["environment"][HOSTILE] = [HOSTILE]
    report["citations"] = [HOSTILE]
    report["rounds"][0]["refused"] = report["rounds"][0]["flags"] = [remark(HOSTILE, HOSTILE, HOSTILE)]
    report["course"] = [{"at": "2026-11-24T09:01:00Z", "event": HOSTILE, "message": HOSTILE}]
    report["timings"][HOSTILE] = report["peak_rss_mib"][HOSTILE] = 1.0
    return report


def test_hostile_text_stays_text() -> None:
    report = poisoned()
    check_report(report)
    seen = Outline(page.html(report, DRAWN, {HOSTILE: PNG}))
    assert not seen.tags & {"script", "iframe", "object", "embed", "form", "link", "base", "svg", "a"}
    assert not seen.handlers
    assert all(address.startswith("data:image/png;base64,") for address in seen.fetched)
    assert "{{ 7*7 }}" in seen.text
    assert "49" not in re.findall(r"onerror=alert\(2\)>(.{0,8})", seen.text)


@pytest.mark.usefixtures("undrawn")
def test_the_page_opens_without_a_network_and_without_scripts(tmp_path: Path) -> None:
    text = write_report(example_report(rounds=2), tmp_path, {}).read_text(encoding="utf-8")
    seen = Outline(text)
    assert "default-src 'none'" in text
    assert all(address.startswith("data:image/png;base64,") for address in seen.fetched)
    assert len(seen.fetched) == 3
    assert "url(" not in text
    assert "@import" not in text


# ------------------------------------------------------------------- the folder


@pytest.mark.slow
def test_a_run_folder_holds_record_figures_page_and_nothing_half_written(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(PNG)
    run = tmp_path / "runs" / "demo"
    place = write_report(example_report(rounds=2), run, {"site-a": picture, "real-test": picture})
    assert place == run / "report.html"
    found = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    assert found == [
        "figures/distributions.png", "figures/distributions.svg", "figures/matrix.png", "figures/matrix.svg",
        "figures/overlay-real-test.png", "figures/overlay-site-a.png", "figures/rounds.png", "figures/rounds.svg",
        "report.html", "report.json",
    ]  # fmt: skip
    assert read_report(run)["overlays"]["site-a"] == "figures/overlay-site-a.png"


@pytest.mark.usefixtures("undrawn")
def test_sites_with_hostile_or_colliding_names_get_their_own_file(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(PNG)
    report = example_report(rounds=1)
    names = ["../../etc", "Site A", "site-a", "\u533b\u9662", "e" * 200]
    report["sites"] |= {name: report["sites"]["site-a"] for name in names}
    write_report(report, tmp_path / "run", dict.fromkeys(names, picture))
    files = list(read_report(tmp_path / "run")["overlays"].values())
    assert len(set(files)) == len(names)
    assert all((tmp_path / "run" / file).is_file() for file in files)


def test_what_is_no_picture_is_not_put_into_the_page(tmp_path: Path) -> None:
    secret = tmp_path / "key.pem"
    secret.write_text("PRIVATE KEY")
    with pytest.raises(BadReport, match="not a PNG"):
        write_report(example_report(rounds=1), tmp_path / "run", {"site-a": secret})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(example_report(rounds=2), tmp_path / name, {})
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


# ------------------------------------------------------------------- the command


def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(report_command)
    return app


@pytest.mark.usefixtures("undrawn")
def test_msfl_report_draws_a_run_again(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(PNG)
    run = tmp_path / "run"
    before = write_report(example_report(rounds=2), run, {"site-a": picture}).read_bytes()
    for path in (run / "report.html", run / "figures" / "matrix.png"):
        path.unlink()
    result = CliRunner().invoke(command(), [str(run), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"report": str(run / "report.html")}
    assert (run / "report.html").read_bytes() == before
    assert (run / "figures" / "matrix.png").is_file()


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), ("{", "not JSON"), ("{}", "cannot be drawn"), ("[]", "cannot be")]
)
def test_msfl_report_says_what_is_wrong(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    result = CliRunner().invoke(command(), [str(tmp_path)])
    assert result.exit_code == 1
    assert said in result.stderr


@pytest.mark.usefixtures("undrawn")
def test_a_changed_record_is_not_drawn(tmp_path: Path) -> None:
    write_report(example_report(rounds=1), tmp_path, {})
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    record["overlays"] = {"site-a": "/etc/passwd"}
    (tmp_path / "report.json").write_text(json.dumps(record))
    assert CliRunner().invoke(command(), [str(tmp_path)]).exit_code == 1


def test_digests_are_whole() -> None:
    assert len(sha256("a")) == 71
