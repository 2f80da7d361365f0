"""Centre, two sites and a data scientist who share nothing but a wire: each with an installation of its own, from its
own extras, in its own folder and network namespace, by the commands that people type. What is handed over is copied.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fakes.apart import Party, parties, why_not
from fakes.federations import until
from fakes.tiny_data import tiny_dataset
from msfl.policies.documents import DatasetRecord, FederationRoot, IssuerKeys, Member, ReleaseStatement
from msfl.policies.encoding import encode, load_json
from msfl.policies.envelope import FEDERATION_ROOT, RELEASE_STATEMENT, Signed, sign
from msfl.policies.identity import mint_token
from msfl.policies.keys import KeyPair, encode_public
from msfl.policies.templates import policy_template
from msfl.registry.oci_layout import LayoutRegistry
from msfl.registry.publish import statements_of
from msfl.runtime.process import ProcessRuntime

CANNOT = why_not()
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.full,  # Three installations take minutes.
    pytest.mark.skipif(CANNOT is not None, reason=f"centre and sites apart: {CANNOT}"),
]
REPOSITORY = Path(__file__).resolve().parents[2]
PEOPLE = ("grace@centre.example", "linus@clinic-a.example", "mary@clinic-b.example", "keeper", "issuer")
PUBLISHER, FIRST, SECOND, KEEPER, ISSUER = PEOPLE
USER, AUDIENCE, YEAR = "ada@uni.example", "msfl-apart", timedelta(days=365)


class Apart:
    def __init__(self, folder: Path, all_of_them: list[Party]) -> None:
        self.centre, self.user, *self.sites = all_of_them
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.keys = {person: KeyPair.generate() for person in PEOPLE}
        self.digest = ""
        self.wheel = self._wheel(folder)

    @staticmethod
    def _wheel(folder: Path) -> Path:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", folder / "wheel", REPOSITORY], check=True)
        (wheel,) = (folder / "wheel").glob("msfl-*.whl")
        return wheel

    def install(self) -> None:
        """Whoever runs a release has the packages that it names beside the part's own."""
        recipe = (REPOSITORY / "learning/msfl/learning/logistic/release.yaml").read_text()
        named = re.search(r"^requires: \[(.*)\]$", recipe, re.MULTILINE)
        assert named is not None
        requires = named[1].split(", ")
        self.centre.install(self.wheel, "orchestrator,registry", *requires)
        self.user.install(self.wheel, "")
        first, *others = self.sites
        first.install(self.wheel, "gateway,imaging", *requires)
        for site in others:
            shutil.copytree(first.folder / "venv", site.folder / "venv", symlinks=True)

    def member(self, *people: str) -> tuple[Member, ...]:
        pairs = [(person, self.keys[person]) for person in people]
        return tuple(Member(person=p, key_id=k.id, public_key=encode_public(k.public)) for p, k in pairs)

    def publish(self) -> None:
        centre = self.centre
        for person, key in self.keys.items():
            (centre.folder / f"{person}.pem").write_bytes(key.to_pem())
        issuer = IssuerKeys(
            issuer="https://id.example", audience=AUDIENCE, keys=(encode_public(self.keys[ISSUER].public),)
        )
        root = FederationRoot(
            federation="apart",
            version=1,
            keepers=self.member(KEEPER),
            publishers=self.member(PUBLISHER),
            reviewers=self.member(FIRST, SECOND),
            reviews_needed=2,
            issuers=(issuer,),
            expires=self.now + YEAR,
        )
        (centre.folder / "root.dsse").write_bytes(sign(encode(root), FEDERATION_ROOT, [self.keys[KEEPER]]))
        centre.msfl("registry", "init", "registry")
        pushed = centre.msfl(
            "registry", "submit", "logistic", "--registry", "registry", "--key", f"{PUBLISHER}.pem",
            "--publisher", PUBLISHER, "--json",
        )  # fmt: skip
        self.digest = json.loads(pushed)["digest"]
        for reviewer in (FIRST, SECOND):
            centre.msfl(
                "registry", "review", "voxel-logistic:1.0.0", "--registry", "registry",
                "--key", f"{reviewer}.pem", "--reviewer", reviewer,
            )  # fmt: skip

    def serve(self) -> None:
        centre = self.centre
        centre.msfl(
            "orchestrator", "init", "--home", "home", "--federation", "apart", "--root", "root.dsse",
            "--registry", "registry", "--host", centre.address, "--name", centre.address,
            "--people-from", f"{self.user.address}/32",
        )  # fmt: skip
        centre.msfl("federation", "revoke", "--trust", "home/trust", "--key", f"{KEEPER}.pem")
        centre.msfl("federation", "timestamp", "--trust", "home/trust", "--key", f"{KEEPER}.pem")
        centre.start("orchestrator", "keyring", "--home", "home")
        centre.start("orchestrator", "serve", "--home", "home")

    def statement(self, registry: Path) -> ReleaseStatement:
        envelope, _ = statements_of(LayoutRegistry(registry), self.digest)
        return load_json(Signed.parse(envelope, RELEASE_STATEMENT).payload_of_kind(), ReleaseStatement)

    def join(self, site: Party, mode: str) -> None:
        token = f"{site.name}.token"
        self.centre.msfl(
            "orchestrator", "token", "create", site.name, "--home", "home", "--out", token,
            "--cidr", f"{site.address}/32",
        )  # fmt: skip
        shutil.copy(self.centre.folder / token, site.folder / token)
        shutil.copytree(self.centre.folder / "registry", site.folder / "registry")
        tiny_dataset(site.folder / "data", n_train=5, n_test=2, seed=len(site.name), gain=1.1)
        site.msfl("data", "import", "data", "--site", site.name, "--dataset", "lesions", "--out", "record.json")
        site.msfl("policy", "keys", "cleo")
        site.msfl(
            "gateway", "enrol", token, "--yes", "--home", "home", "--custodian", "cleo",
            "--custodian-key", "cleo.key.pem", "--registry", site.folder / "registry",
        )  # fmt: skip
        site.msfl("data", "publish", "--home", "home", "--record", "record.json", "--data", site.folder / "data")
        record = load_json((site.folder / "record.json").read_bytes(), DatasetRecord, max_bytes=64 << 20)
        text = policy_template(
            self.statement(site.folder / "registry"), record, (USER,), self.now, rounds_max=20, reviewers=2,
            min_cases_train=4, min_cases_metrics=2, min_sites=2, memory_gib=22, gpus=0, local_model=True,
            isolation=ProcessRuntime().protections().isolation, mode="confirm" if mode == "confirm" else "auto",
        )  # fmt: skip
        (site.folder / "policy.yaml").write_text(text)
        site.msfl("policy", "sign", "policy.yaml", "--key", "cleo.key.pem", "--out", "home/policies/one.dsse")
        site.start("gateway", "serve", "--home", "home")

    def log_in(self) -> None:
        """As an identity provider would."""
        key = KeyPair.generate()
        token = mint_token(
            self.keys[ISSUER], "https://id.example", AUDIENCE, "ada", USER, "uni.example", key.thumbprint, self.now
        )
        ca = (self.centre.folder / "home/tls/ca.pem").read_text()
        shown = {"endpoint": f"{self.centre.address}:8443", "ca": ca, "token": token, "user": USER}
        (self.user.folder / "credentials.json").write_text(json.dumps({**shown, "key": key.to_pem().decode()}))


def test_a_run_of_parties_who_share_nothing_but_a_wire(tmp_path: Path) -> None:
    with parties(tmp_path, "centre", "user", "site-a", "site-b") as all_of_them:
        apart = Apart(tmp_path, all_of_them)
        apart.install()
        apart.publish()
        apart.serve()
        site_a, site_b = apart.sites
        apart.join(site_a, "auto")
        apart.join(site_b, "confirm")
        apart.log_in()

        # Nobody sees anybody's folder, nor this repository; a hospital has no orchestrator's extras and no torch.
        look = f"import os; print([os.listdir(f) for f in {[str(h) for h in site_a.hidden]}])"
        assert site_a.python(look).strip() == str([[]] * len(site_a.hidden))
        missing = "import importlib.util as u; print([n for n in ('torch', 'jsonschema', 'numpy') if u.find_spec(n)])"
        assert "torch" not in site_a.python(missing)
        assert apart.user.python(missing).strip() == "[]"

        job = {
            "release": "voxel-logistic:1.0.0",
            "datasets": ["site-a/lesions", "site-b/lesions"],
            "rounds": 2,
            "profile": "demo",
            "config": {"batches_per_epoch": 2},
            "min_sites": 2,
        }
        (apart.user.folder / "job.json").write_text(json.dumps(job))
        listed = json.loads(apart.centre.msfl("orchestrator", "site", "list", "--home", "home", "--json"))
        assert {site: kept["addresses"] for site, kept in listed.items()} == {
            "site-a": [f"{site_a.address}/32"],
            "site-b": [f"{site_b.address}/32"],
        }
        run = json.loads(apart.user.msfl("job", "submit", "job.json", "--json"))["run_id"]
        until(lambda: (site_b.folder / f"home/pending/{run}.json").exists(), "site-b to ask its custodian")
        read = site_b.msfl("gateway", "confirm", run, "--home", "home", "--key", "cleo.key.pem", "--yes")
        assert f"reviewed by {FIRST}, {SECOND}" in read
        apart.user.msfl("job", "watch", run, "--json")
        shown = json.loads(apart.user.msfl("job", "show", run, "--json"))
        assert shown["phase"] == "finished"
        assert [sorted(r["sites"]) for r in shown["rounds"]] == [["site-a", "site-b"]] * 2
        for site in apart.sites:
            assert "is whole" in site.msfl("gateway", "audit", "--home", "home")
