"""Attack 25: a patient's name, number, UID and path, planted wherever they occur in a hospital, never leave it.

They stand in file names, in NIfTI headers and their extensions, in `dataset.json`, in the folder's path, and in
everything that a worker says: standard output, tracebacks, failure codes, phases, metrics, an undeclared field of a
result. A recorder at the gateway's socket reads every byte in clear; sealed streams (fingerprints, summaries, weights)
are opened with the keys of both sides. Then the centre's whole folder, its logs and what a user is shown are searched.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nibabel
import pytest

from fakes import federations
from fakes.federations import DATASET, SITES, LiveFederation, until
from fakes.recorders import Recorder
from fakes.tiny_data import tiny_dataset
from msfl.gateway.home import Home
from msfl.protos.notary import export_of
from msfl.protos.sealing import StreamHeader, open_sealed, run_key, unwrap_run_secret
from msfl.registry.build import find_recipe
from msfl.sdk.demo.federation import DemoSite
from msfl.sdk.run import Run, RunEnded

pytestmark = [pytest.mark.system, pytest.mark.slow]
NAME, NUMBER, UID = "DOEJOHN", "MRN4711889", "1.2.826.0.1.3680043.8.498.4711"
FOLDER = "images-of-the-patient-doe"
PLANTED = (NAME, NUMBER, UID, FOLDER)

_LEAKY = f'''
import sys
from dataclasses import replace

from msfl.learning.contract import ModelRefusal
from msfl.learning.logistic.model import VoxelLogistic
from msfl.learning.serve import serve
from msfl.protos.tasklink import Progress, Result, TaskLink

SAYS = "{NAME} {NUMBER} {UID} {FOLDER}"
SITE = sys.argv[sys.argv.index("--site") + 1] if "--site" in sys.argv else ""


class Leaky(VoxelLogistic):
    def train(self, site, weights, stream, round, config, progress):
        print(SAYS, flush=True)
        print(SAYS, file=sys.stderr, flush=True)
        died = site.scratch / "died"
        if site.site_id == "site-a" and not died.exists():
            died.touch()
            raise RuntimeError(f"cannot read {{sorted((site.data / 'imagesTr').iterdir())}} of {{SAYS}}")
        if site.site_id == "site-b" and round == 2:
            raise ModelRefusal("{NAME}_{NUMBER}", SAYS)
        return super().train(site, weights, stream, round, config, progress)


really = TaskLink.send


def send(link, frame, **options):
    if isinstance(frame, Progress) and SITE:
        frame = Progress(frame.task_id, SAYS, frame.done, frame.total, {{**frame.metrics, "{NAME}": 1.0}})
    if isinstance(frame, Result) and SITE == "site-c" and frame.task_id == "evaluate/test":
        frame = replace(frame, document={{**frame.document, "note": SAYS}})
    really(link, frame, **options)


TaskLink.send = send
sys.exit(serve(Leaky()))
'''


def leaky_release(folder: Path) -> Path:
    """The small release with a worker that says all it knows."""
    package = folder / "code/msfl/leaky"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(_LEAKY)
    text = find_recipe("logistic").read_text()
    for old, new in (
        ("name: voxel-logistic", "name: leaky"),
        ("msfl.learning.logistic]", "msfl.leaky]"),
        ("code:\n", "code:\n  - msfl/leaky\n"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "release").mkdir()
    (folder / "release/release.yaml").write_text(text)
    shutil.copy(find_recipe("logistic").with_name("model-card.md"), folder / "release")
    return folder / "release"


def hospital_data(folder: Path, seed: int) -> Path:
    data = tiny_dataset(folder, n_train=5, n_test=2, seed=seed, prefix=f"{NAME}_{NUMBER}_")
    description = json.loads((data / "dataset.json").read_text())
    said = {"name": NAME, "description": f"{NAME} {NUMBER} {UID}", "reference": FOLDER, "patients": {NUMBER: UID}}
    (data / "dataset.json").write_text(json.dumps({**description, **said}))
    for file in data.rglob("*.nii.gz"):
        image = nibabel.load(file)
        assert isinstance(image, nibabel.Nifti1Image)
        image.header["descrip"] = f"{NAME} {NUMBER} {UID}"[:79].encode()
        image.header["aux_file"] = NUMBER.encode()
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{NAME} {UID}".encode()))
        nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype("int16"), image.affine, image.header), file)
    return data


@pytest.fixture(scope="module")
def monkeymodule() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def hospitals(
    tmp_path_factory: pytest.TempPathFactory, monkeymodule: pytest.MonkeyPatch
) -> Iterator[tuple[LiveFederation, dict[str, Recorder], Run]]:
    """A run with everything planted, over recorded lines."""
    elsewhere = tmp_path_factory.mktemp("hospital") / FOLDER
    sites = tuple(DemoSite(s, DATASET, hospital_data(elsewhere / s, i)) for i, s in enumerate(SITES))
    monkeymodule.setattr(federations, "tiny_sites", lambda folder, names, edge: sites)
    release = leaky_release(tmp_path_factory.mktemp("leaky"))
    monkeymodule.syspath_prepend(release.parent / "code")
    with ExitStack() as lines, LiveFederation.up(tmp_path_factory.mktemp("f"), str(release)) as live:
        recorders = {site: recorded(live, site) for site in SITES}
        for site, line in recorders.items():
            lines.callback(line.close)
            until(line.raw_up, f"{site} to come over its line")
        until(live.all_present, "the gateways to be back")
        run = live.client.submit(live.job(rounds=2, min_sites=2, baseline="local"))
        with suppress(RunEnded):  # At its very end it lacks two of its three sites.
            run.wait()
        yield live, recorders, run


def recorded(live: LiveFederation, site: str) -> Recorder:
    """From here on the site's gateway, started anew, reaches the centre through a recorder only."""
    centre, home = live.federation.folder / "centre", Home(live.home(site))
    line = Recorder(live.federation.link_port, centre / "tls/server.pem", home.identity_file, home.root / "tls/ca.pem")
    live.end(f"gateway:{site}")
    home.write_settings(replace(home.settings(), link_endpoint=f"127.0.0.1:{line.port}"))
    live.start_again(f"gateway:{site}")
    return line


def data_folder(live: LiveFederation, site: str) -> Path:
    """Where that hospital keeps its images."""
    return Home(live.home(site)).dataset_folder(DATASET)


def spellings(word: str) -> Iterator[bytes]:
    """As it stands, and as encodings that are not encryption would write it."""
    for text in {word, word.lower(), word.replace("_", " ")}:
        yield text.encode()
        yield text.encode("utf-16-le")
        yield text.encode().hex().encode()
        for shift in range(3):
            # Only what the word alone decides; the characters at both ends depend on its neighbours.
            yield base64.b64encode(bytes(shift) + text.encode())[4 if shift else 0 : -4]


def planted_in(data: bytes) -> list[str]:
    return [word for word in PLANTED if any(s in data for s in spellings(word))]


def test_what_was_planted_was_there_to_be_found(hospitals: tuple[LiveFederation, dict[str, Recorder], Run]) -> None:
    """Else the rest of this file would prove nothing."""
    live, _, run = hospitals
    log = (live.home("site-a") / "runs" / run.run_id / "worker.log").read_bytes()
    assert set(planted_in(log)) == set(PLANTED)
    assert planted_in(f"x{base64.b64encode(b'ab' + UID.encode()).decode()}".encode()) == [UID]
    assert planted_in((data_folder(live, "site-c") / "dataset.json").read_bytes()) == list(PLANTED)
    state = run.state()
    assert len(state["rounds"]) == 2
    assert state["sites"]["site-b"]["code"] == "worker_failed"
    assert state["sites"]["site-c"]["code"] == "output_blocked"
    lost = [e for e in live.audit("site-a", run.run_id) if e["action"] == "worker lost"]
    assert [e["fields"]["code"] for e in lost] == ["worker_error"]


def test_no_byte_at_the_gateways_sockets_holds_it(hospitals: tuple[LiveFederation, dict[str, Recorder], Run]) -> None:
    live, recorders, run = hospitals
    centre_key = (live.federation.folder / "centre/keyring/centre.key").read_bytes()
    for site, line in recorders.items():
        assert planted_in(line.raw_up()) == [], site
        said = [b"".join(call) for call in line.calls_up()]
        assert any(b"train/1" in call for call in said), "the recorder reads in clear"
        assert all(planted_in(call) == [] for call in said), site
        site_key = Home(live.home(site)).secret("site.key")
        secret = unwrap_run_secret(centre_key, line.wrapped_secret(run.run_id), run.run_id, site, site_key, 2)
        key = run_key(secret, site_key, run.run_id, site)
        opened = 0
        for name, sealed in line.uploads().items():
            assert name.startswith(run.run_id)
            plain = io.BytesIO()
            length = int.from_bytes(sealed[:4])
            open_sealed(key, StreamHeader(**json.loads(sealed[4 : 4 + length])), io.BytesIO(sealed), plain)
            assert planted_in(plain.getvalue()) == [], name
            opened += 1
        assert opened >= 3, site


def test_the_centre_and_its_logs_do_not_hold_it(hospitals: tuple[LiveFederation, dict[str, Recorder], Run]) -> None:
    live, _, _ = hospitals
    folder = live.federation.folder
    release = folder / "centre/aggregators/images"  # The worker's own code, in which the words are written.
    files = [f for f in (folder / "centre").rglob("*") if f.is_file() and release not in f.parents]
    files += [folder / "logs/orchestrator.log", folder / "logs/keyring.log"]
    assert len(files) > 20
    for file in files:
        assert planted_in(file.read_bytes()) == [], file


def test_what_a_user_is_shown_does_not_hold_it(hospitals: tuple[LiveFederation, dict[str, Recorder], Run]) -> None:
    live, _, run = hospitals
    shown = [run.state(), live.client.datasets(), *live.client.watch(run.run_id)]
    text = json.dumps(shown, ensure_ascii=False, default=str)
    assert "output_blocked" in text
    assert planted_in(text.encode()) == []


def test_the_sites_own_audit_log_can_be_shown_to_an_auditor(
    hospitals: tuple[LiveFederation, dict[str, Recorder], Run],
) -> None:
    live, _, run = hospitals
    for site in SITES:
        home = Home(live.home(site))
        assert planted_in(export_of(home.audit, datetime.now(UTC))) == []
        shown = live.command("gateway", "audit", "sent", run.run_id, "--home", home.root)
        assert shown.returncode == 0
        assert "the weights of the model after this site's training" in shown.stdout
        assert planted_in(shown.stdout.encode()) == []
