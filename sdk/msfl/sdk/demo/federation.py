"""Setting up a whole federation in one folder, by the same commands and calls as real people use.

    runs/<name>/
      keys/            publisher, two reviewers, keeper, timekeeper, issuer: in life, different people's
      registry/        OCI image layout
      centre/          orchestrator and keyring
      sites/<site>/    data (where generated), custodian/ (the site's signing key), gateway/ (its home)
      client/          credentials.json of the data scientist
      logs/  audit/  figures/  report.html  report.json  model.zip

Everything is kept, so that a reader can open every key and document. In life no two of these folders share a machine.
"""

from __future__ import annotations

import json
import os
import socket
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from msfl.policies.documents import (
    MAX_TIMESTAMP_LIFE,
    DatasetRecord,
    FederationRoot,
    Isolation,
    IssuerKeys,
    Member,
    Named,
    Publication,
    ReleaseStatement,
    Review,
    Timestamp,
)
from msfl.policies.encoding import encode, load_json, sha256_of
from msfl.policies.envelope import (
    ASSET_POLICY,
    FEDERATION_ROOT,
    PUBLICATION,
    RELEASE_STATEMENT,
    REVIEW,
    REVOCATIONS,
    TIMESTAMP,
    sign,
)
from msfl.policies.federation import TrustFolder, next_revocations
from msfl.policies.identity import mint_token
from msfl.policies.keys import KeyPair, encode_public
from msfl.policies.templates import policy_template
from msfl.registry.base import read_base
from msfl.registry.build import build_release, find_recipe
from msfl.registry.location import open_registry
from msfl.registry.model_card import find_card
from msfl.registry.oci_layout import LayoutRegistry
from msfl.registry.publish import add_publication, add_review, attach_materials, push_release, submit_statement
from msfl.sdk.credentials import Credentials
from msfl.sdk.demo.processes import CommandFailed, Processes, msfl

JsonObject: TypeAlias = dict[str, Any]
FEDERATION = "demo"
USER, ORGANISATION = "ada@uni.example", "uni.example"
PUBLISHER, REVIEWERS, KEEPER = "grace@centre.example", ("linus@clinic-a.example", "mary@clinic-b.example"), "operator"
TIMEKEEPER = "timekeeper"
ISSUER, AUDIENCE = "https://demo.invalid/embedded-issuer", "msfl-demo"
YEAR = timedelta(days=365)


@dataclass(frozen=True)
class DemoSite:
    """`data` is the user's own folder, or None when the site generates its data itself."""

    name: str
    dataset: str
    data: Path | None
    description: str = ""
    trains: bool = True


@dataclass
class Federation:
    folder: Path
    processes: Processes
    sites: tuple[DemoSite, ...]
    isolation: Isolation
    rounds_max: int
    issuers: tuple[IssuerKeys, ...] = ()  # identity providers beside the embedded issuer
    registry: str = ""  # where a real one is; a folder of this federation's own where none is named
    base: str = ""  # the base image that the release is built on, where it is to hold all that it needs
    runtime: tuple[str, ...] = ()  # options that choose what releases run in, at the centre and at every site
    statement: ReleaseStatement | None = None
    port: int = 0
    link_port: int = 0
    records: dict[str, DatasetRecord] = field(default_factory=dict)

    def key(self, person: str) -> KeyPair:
        """A person's key; made at first use, kept in `keys/`, mode 0600."""
        file = self.folder / "keys" / f"{person}.pem"
        if not file.exists():
            file.parent.mkdir(exist_ok=True, mode=0o700)
            _write_private(file, KeyPair.generate().to_pem())
        return KeyPair.from_pem(file.read_bytes())

    @property
    def registry_location(self) -> str:
        if self.registry:
            return self.registry
        return str(LayoutRegistry.create((self.folder / "registry").resolve()).root)

    def home(self, site: str) -> Path:
        return self.folder / "sites" / site / "gateway"

    def data_folder(self, site: DemoSite) -> Path:
        return site.data or self.folder / "sites" / site.name / "data" / site.name

    # ------------------------------------------------------------------ data

    def make_data(self, seed: int) -> None:
        """Each site makes its own data, in its own process."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda s: self._make_data(s, seed), [s for s in self.sites if s.data is None]))

    def _make_data(self, site: DemoSite, seed: int) -> None:
        target = self.folder / "sites" / site.name / "data"
        self.processes.run(f"data-{site.name}", msfl("data", "synth", target, "--site", site.name, "--seed", str(seed)))

    def check_data(self) -> None:
        """Every site checks its data and writes its record. Raises CommandFailed with one line per problem."""
        with ThreadPoolExecutor() as pool:
            for site, record in zip(self.sites, pool.map(self._check_data, self.sites), strict=True):
                self.records[site.name] = record

    def _check_data(self, site: DemoSite) -> DatasetRecord:
        out = self.folder / "sites" / site.name / "record.json"
        options = ["--site", site.name, "--dataset", site.dataset, "--out", str(out)]
        options += ["--description", site.description]
        options += ["--generated"] if site.data is None else []
        try:
            self.processes.run(f"data-{site.name}", msfl("data", "import", self.data_folder(site), *options))
        except CommandFailed as failed:
            problems = "\n".join(f"{site.name}: {line}" for line in str(failed).splitlines())
            raise CommandFailed(problems) from failed
        return load_json(out.read_bytes(), DatasetRecord, out.name, max_bytes=64 << 20)

    # --------------------------------------------------------------- release

    def publish_release(self, recipe: str, now: datetime) -> None:
        """Build, push, sign the statement, two reviews by different people, publish."""
        registry = open_registry(self.registry_location)
        file = find_recipe(recipe)
        with tempfile.TemporaryDirectory(prefix="msfl-base-") as scratch:  # The base's layers lie there till pushed.
            base = read_base(self.base, Path(scratch)) if self.base else None
            built = build_release(file, Path(sysconfig.get_paths()["purelib"]), base=base)
            digest = push_release(registry, built)
            sbom, card = built.sbom(), find_card(file.parent)
            attach_materials(registry, digest, sbom, card)
        statement = built.statement(
            publisher=PUBLISHER,
            commit="unknown",
            issued=now,
            expires=now + YEAR,
            materials=built.materials(sbom, card),
        )
        payload = encode(statement)
        self._keep("release-statement.dsse", sign(payload, RELEASE_STATEMENT, [self.key(PUBLISHER)]))
        submit_statement(registry, digest, (self.folder / "documents/release-statement.dsse").read_bytes())
        for reviewer in REVIEWERS:
            review = Review(
                digest=digest,
                statement_sha256=sha256_of(payload),
                verdict="approve",
                comment="Read the code, the declared outputs and the lock of the environment.",
                reviewer=reviewer,
                issued=now,
                expires=now + YEAR,
            )
            envelope = sign(encode(review), REVIEW, [self.key(reviewer)])
            self._keep(f"review-{reviewer}.dsse", envelope)
            add_review(registry, digest, envelope)
        word = Publication(digest=digest, statement_sha256=sha256_of(payload), publisher=PUBLISHER, issued=now)
        add_publication(registry, digest, sign(encode(word), PUBLICATION, [self.key(PUBLISHER)]))
        self.statement = statement

    def _keep(self, name: str, data: bytes) -> None:
        file = self.folder / "documents" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)

    # ---------------------------------------------------------------- centre

    def start_centre(self, now: datetime) -> None:
        issuer = IssuerKeys(issuer=ISSUER, audience=AUDIENCE, keys=(encode_public(self.key("issuer").public),))
        root = FederationRoot(
            federation=FEDERATION,
            version=1,
            keepers=self._members(KEEPER),
            timekeepers=self._members(TIMEKEEPER),
            publishers=self._members(PUBLISHER),
            reviewers=self._members(*REVIEWERS),
            reviews_needed=2,
            issuers=(issuer, *self.issuers),
            expires=now + YEAR,
        )
        self._keep("federation-root.dsse", sign(encode(root), FEDERATION_ROOT, [self.key(KEEPER)]))
        centre = self.folder / "centre"
        self.port, self.link_port = _free_ports(2)
        self.processes.run(
            "orchestrator-init",
            msfl(
                "orchestrator", "init", "--home", centre, "--federation", FEDERATION,
                "--root", self.folder / "documents/federation-root.dsse", "--registry", self.registry_location,
                "--port", str(self.port), "--link-port", str(self.link_port), *self.runtime,
            ),
        )  # fmt: skip
        self._publish_trust(root, now)
        self.processes.start("keyring", msfl("orchestrator", "keyring", "--home", centre))

    def _publish_trust(self, root: FederationRoot, now: datetime) -> None:
        """Nothing is revoked, and that is the newest: what `msfl federation revoke` and `timestamp` sign, good for as
        long as a timestamp may be."""
        folder = TrustFolder(self.folder / "centre" / "trust")
        listed = next_revocations(None, root.federation, now)
        stamp = Timestamp(
            federation=root.federation,
            version=1,
            root=Named(version=root.version, sha256=sha256_of(encode(root))),
            revocations=Named(version=listed.version, sha256=sha256_of(encode(listed))),
            issued=now,
            expires=now + MAX_TIMESTAMP_LIFE,
        )
        folder.write("revocations", sign(encode(listed), REVOCATIONS, [self.key(KEEPER)]))
        folder.write("timestamp", sign(encode(stamp), TIMESTAMP, [self.key(TIMEKEEPER)]))

    def serve_centre(self) -> None:
        """Once the registry holds the release."""
        self.processes.start("orchestrator", msfl("orchestrator", "serve", "--home", self.folder / "centre"))

    def _members(self, *people: str) -> tuple[Member, ...]:
        pairs = [(person, self.key(person)) for person in people]
        return tuple(Member(person=p, key_id=k.id, public_key=encode_public(k.public)) for p, k in pairs)

    # ----------------------------------------------------------------- sites

    def join_sites(self, now: datetime) -> None:
        """Token, enrolment, dataset, signed policy; then the gateway goes on the line."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda site: self._join(site, now), self.sites))

    def _join(self, site: DemoSite, now: datetime) -> None:
        mine, centre = self.folder / "sites" / site.name, self.folder / "centre"
        custodian = f"custodian@{site.name}.example"
        pem = mine / "custodian" / f"{custodian}.pem"
        pem.parent.mkdir(parents=True, mode=0o700)
        key = KeyPair.generate()
        _write_private(pem, key.to_pem())
        token = mine / f"{site.name}.token"
        self.processes.run(
            f"token-{site.name}",
            msfl("orchestrator", "token", "create", site.name, "--home", centre, "--out", token),
        )
        home = self.home(site.name)
        self.processes.run(
            f"join-{site.name}",
            msfl(
                "gateway", "enrol", token, "--yes", "--home", home,
                "--custodian", custodian, "--custodian-key", pem, *self.runtime,
            ),
            msfl(
                "data", "publish", "--home", home, "--record", mine / "record.json",
                "--data", self.data_folder(site),
            ),
        )  # fmt: skip
        text = self.policy(site, now)
        (home / "policies" / "lesion-segmentation.yaml").write_text(text)
        (home / "policies" / "lesion-segmentation.dsse").write_bytes(sign(text.encode(), ASSET_POLICY, [key]))
        self.processes.start(f"gateway:{site.name}", msfl("gateway", "serve", "--home", home))

    def policy(self, site: DemoSite, now: datetime) -> str:
        """The policy that the demo's custodian signs: unattended, local model may leave, small sites may report."""
        assert self.statement is not None, "the release is published before policies name it"
        return policy_template(
            self.statement,
            self.records[site.name],
            (USER,),
            now,
            purpose="Show a whole federation on one machine",
            valid_for=timedelta(days=30),
            rounds_max=self.rounds_max,
            reviewers=2,
            local_model=True,
            min_cases_train=4,
            # A hospital would keep 3 or more; the demo's sites are small, and its patients published or made up.
            min_cases_metrics=2,
            min_sites=min(2, sum(s.trains for s in self.sites)),
            memory_gib=22,
            gpus=len(list(Path("/dev").glob("nvidia[0-9]*"))),
            isolation=self.isolation,
            mode="auto",
            max_runs=10,
            max_rounds=10 * self.rounds_max,
        )

    # ---------------------------------------------------------------- client

    def write_credentials(self, now: datetime) -> Path:
        """What `msfl login` gives a user, from the embedded issuer, which is for one machine only."""
        key = KeyPair.generate()
        token = mint_token(self.key("issuer"), ISSUER, AUDIENCE, "ada", USER, ORGANISATION, key.thumbprint, now)
        ca = (self.folder / "centre/tls/ca.pem").read_text()
        file = self.folder / "client" / "credentials.json"
        Credentials(f"127.0.0.1:{self.port}", ca, token, key.to_pem().decode(), USER).write(file)
        return file


def user_sites(data: Path) -> tuple[DemoSite, ...]:
    """One site per sub-folder with a dataset.json; without `imagesTr` it only evaluates. Raises ValueError."""
    sites = []
    for folder in sorted(p.parent for p in data.glob("*/dataset.json")):
        try:
            description = json.loads((folder / "dataset.json").read_text())
        except ValueError:
            description = {}  # The check of the dataset names what is wrong with it.
        told = ". ".join(str(description[k]) for k in ("description", "licence", "reference") if k in description)
        trains = (folder / "imagesTr").is_dir()
        sites.append(DemoSite(_slug(folder.name), "lesions", folder.resolve(), told[:2000], trains))
    if not any(site.trains for site in sites):
        raise ValueError(
            f"{data} holds no site to train on: it needs one folder per site, each with imagesTr, labelsTr, imagesTs, "
            "labelsTs and dataset.json (nnU-Net raw layout)"
        )
    return tuple(sites)


def _slug(name: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return "-".join(part for part in kept.split("-") if part) or "site"


def _free_ports(n: int) -> list[int]:
    """Ports that are free now; held all at once, so that they differ."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _write_private(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(data)
