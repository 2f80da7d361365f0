"""The gateway's folder: everything a site owns, in files that a custodian can open.

    site.json                  site id, endpoints, registry, runtime settings
    tls/                       identity.pem (key, which never leaves, and certificate: one file, never one without
                               the other), ca.pem
    secrets/                   site.key (symmetric), centre.pub
    trust/issuers/             the newest key set of each identity provider that has stewards
    trust/                     site-root.dsse, federation-root.dsse, federation-root.sha256; memory.sqlite: versions,
                               revocations, time (`memory`); <root>.next.dsse: a root that is about to be taken up
    policies/<id>.dsse         what custodians signed; <id>.yaml beside it is for reading only
    datasets/<id>.json         records of published datasets; <id>.path says where the data lie
    pending/, confirmed/       runs that wait for the custodian; their answers: <run>.dsse, signed, or <run>.json, a no
    audit/                     the log, hash-chained and written before the effect; its key; checkpoints of it, and
                               of the centre's (`msfl.protos.audit_log`)
    stopped/                   running runs that the custodian wants ended
    runs/<run>/                one folder per run: its record (`record`), the worker's box, sealed files, worker.log
    images/                    verified releases by digest
    staff/                     accounts of the site's staff, hashed passwords, sessions (`staff.book`)

Secrets are 0600, folders 0700. Writes go to a temporary name first: a torn file never takes a good one's place.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from msfl.gateway.disk import is_full
from msfl.gateway.reveal import Reveal
from msfl.policies.documents import DatasetRecord, SiteRoot
from msfl.policies.encoding import Malformed, load_json
from msfl.policies.envelope import SITE_ROOT, Signed
from msfl.policies.refusals import CannotProceed, Code, Refusal, refuse
from msfl.policies.trust import (
    NOTHING_REVOKED,
    NotTrusted,
    Revoked,
    TrustedFederationRoot,
    TrustedPolicy,
    TrustedSiteRoot,
    not_trusted,
    trust_federation_root,
    trust_policy,
    trust_site_root,
)
from msfl.protos.certificates import Identity
from msfl.protos.durable_files import write_durably
from msfl.protos.key_sets import KeySets
from msfl.runtime.choice import DEFAULT, RuntimeChoice

log = structlog.get_logger()


@dataclass(frozen=True)
class SiteSettings:
    """`registry` is a location (`msfl.registry.location`); `reveal` is what others learn of a refusal here;
    `images_gib`: the most that the cache of images (`images/`) may take on this machine; `runtime` is what workers run
    in."""

    site: str
    federation: str
    link_endpoint: str
    registry: str
    reveal: Reveal = Reveal.REASON
    images_gib: float = 40
    runtime: RuntimeChoice = DEFAULT

    @classmethod
    def read(cls, file: Path) -> SiteSettings:
        """Raises FileNotFoundError before the site has been enrolled, CannotProceed where the file is no JSON object of
        these settings, `reveal` no such word, `images_gib` no size or `runtime` no runtime."""
        try:
            given = dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise CannotProceed(f"{file}: it is no JSON object: {error}") from error
        if unknown := sorted(given.keys() - {field.name for field in fields(cls)}):
            raise CannotProceed(f"{file}: there is no setting {', '.join(unknown)}")
        runtime = RuntimeChoice.read(given.get("runtime"), str(file))
        try:
            settings = cls(**{**given, "reveal": Reveal(given.get("reveal", Reveal.REASON)), "runtime": runtime})
        except ValueError:
            known = ", ".join(Reveal)
            raise CannotProceed(f"{file}: reveal is {given['reveal']!r}; it must be one of {known}") from None
        except TypeError as error:
            raise CannotProceed(f"{file}: a setting is missing: {error}") from error
        size: object = settings.images_gib
        if not isinstance(size, int | float) or isinstance(size, bool) or not 0 < size < 1 << 20:
            raise CannotProceed(f"{file}: images_gib is {size!r}; it must be a number of GiB, such as 40")
        return settings

    @property
    def images_bytes(self) -> int:
        return int(self.images_gib * (1 << 30))


class NoIdentity(CannotProceed):
    """The site's key and certificate are not there, or are something else."""


@dataclass(frozen=True)
class Home:
    root: Path
    _settings: list[SiteSettings] = field(default_factory=list, compare=False, repr=False)

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def registry_access(self) -> Path:
        """What the registry wants to know, where it wants anything; its administrator writes it."""
        return self.root / "secrets" / "registry.json"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def staff(self) -> Path:
        return self.root / "staff"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    def run_folder(self, run_id: str) -> Path:
        return self.runs / run_id

    # ---------------------------------------------------------------- settings

    def settings(self) -> SiteSettings:
        """As the file says now. Where it cannot be read any more, as it said before: a slip of the pen ends no gateway
        that serves. Raises FileNotFoundError before the site has been enrolled, CannotProceed."""
        try:
            self._settings[:] = [SiteSettings.read(self.root / "site.json")]
        except (CannotProceed, OSError) as error:
            if not self._settings:
                raise
            log.error("the settings cannot be read any more; those of before hold", why=str(error))
        return self._settings[0]

    def write_settings(self, settings: SiteSettings) -> None:
        write(self.root / "site.json", json.dumps(asdict(settings), indent=1).encode())

    def secret(self, name: str) -> bytes:
        return (self.root / "secrets" / name).read_bytes()

    @property
    def identity_file(self) -> Path:
        return self.root / "tls" / "identity.pem"

    def identity(self) -> Identity:
        """This site's TLS key and certificate. Raises NoIdentity."""
        try:
            return Identity.from_pem(self.identity_file.read_bytes())
        except (OSError, ValueError) as error:
            what = f"{self.identity_file} cannot be used ({error}): put it back from a copy, or enrol --again"
            raise NoIdentity(what) from error

    def write_identity(self, identity: Identity) -> None:
        write(self.identity_file, identity.to_pem())

    @property
    def ca_pem(self) -> bytes:
        return (self.root / "tls" / "ca.pem").read_bytes()

    # ------------------------------------------------------------------- trust

    @property
    def site_root_file(self) -> Path:
        return self.root / "trust" / "site-root.dsse"

    @property
    def federation_root_file(self) -> Path:
        return self.root / "trust" / "federation-root.dsse"

    @property
    def memory_file(self) -> Path:
        return self.root / "trust" / "memory.sqlite"

    @property
    def ledger_file(self) -> Path:
        return self.root / "ledger.sqlite"

    def site_root(self, now: datetime) -> TrustedSiteRoot | Refusal:
        return trust_site_root(self.site_root_file.read_bytes(), self.settings().site, now)

    def custodians(self) -> frozenset[str]:
        """The people whom the site root names, also once it has expired; nobody where it cannot be read."""
        try:
            data = self.site_root_file.read_bytes()
            root = load_json(Signed.parse(data, SITE_ROOT, "site root").payload_of_kind(), SiteRoot, "site root")
        except (OSError, Malformed):
            return frozenset()
        return frozenset(member.person for member in root.custodians)

    def federation_root(self, now: datetime) -> TrustedFederationRoot | Refusal:
        """Trusted because its hash is the one the custodian accepted at enrolment."""
        pinned = self.federation_root_file.with_suffix(".sha256").read_text().strip()
        return trust_federation_root(self.federation_root_file.read_bytes(), pinned, now)

    @property
    def key_sets(self) -> KeySets:
        return KeySets(self.root / "trust" / "issuers")

    def policies(
        self, now: datetime, revoked: Revoked = NOTHING_REVOKED
    ) -> tuple[tuple[TrustedPolicy, ...], tuple[NotTrusted, ...]]:
        """Every policy in the folder that its custodians signed, and why the others count for nothing."""
        root = self.site_root(now)
        if isinstance(root, Refusal):
            return (), (not_trusted(root),)
        trusted: list[TrustedPolicy] = []
        refused: list[NotTrusted] = []
        for file in sorted((self.root / "policies").glob("*.dsse")):
            match trust_policy(file.read_bytes(), root, now, file.name, revoked):
                case NotTrusted() as refusal:
                    refused.append(refusal)
                case policy:
                    trusted.append(policy)
        return tuple(trusted), tuple(refused)

    # ---------------------------------------------------------------- datasets

    def dataset(self, dataset_id: str) -> DatasetRecord | Refusal:
        file = self.root / "datasets" / f"{dataset_id}.json"
        if "/" in dataset_id or not file.exists():
            return refuse(Code.DATASET_UNKNOWN, f"This site has no dataset {dataset_id}.", dataset=dataset_id)
        try:
            return load_json(file.read_bytes(), DatasetRecord, file.name, max_bytes=64 << 20)
        except Malformed as error:
            # What is wrong may be the name of a file, and the answer may leave the site.
            log.error("the record of a dataset cannot be read", dataset=dataset_id, why=str(error))
            return refuse(
                Code.MALFORMED_DOCUMENT, f"The record of {dataset_id} cannot be read; the site's log says why."
            )

    def dataset_folder(self, dataset_id: str) -> Path:
        return Path((self.root / "datasets" / f"{dataset_id}.path").read_text().strip())

    def datasets(self) -> list[DatasetRecord]:
        records = [self.dataset(file.stem) for file in sorted((self.root / "datasets").glob("*.json"))]
        return [r for r in records if isinstance(r, DatasetRecord)]

    def dataset_stamps(self) -> dict[str, int]:
        """Which records lie here and when each was written (ns): another answer, and one may have been published."""
        found = {}
        for file in (self.root / "datasets").glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # Withdrawn at this moment.
                found[file.name] = file.stat().st_mtime_ns
        return found

    # ------------------------------------------------------------ confirmation

    def park(self, run_id: str, shown: dict[str, Any]) -> None:
        write(self.root / "pending" / f"{run_id}.json", json.dumps(shown, indent=1).encode())

    def unpark(self, run_id: str) -> None:
        (self.root / "pending" / f"{run_id}.json").unlink(missing_ok=True)

    def pending(self) -> dict[str, dict[str, Any]]:
        return {f.stem: json.loads(f.read_text()) for f in sorted((self.root / "pending").glob("*.json"))}

    def decline(self, run_id: str, by: str) -> None:
        """The custodian's no to a parked run. It needs no signature: nothing starts without a yes."""
        write(self.root / "confirmed" / f"{run_id}.json", json.dumps({"by": by}).encode())

    def declined(self, run_id: str) -> dict[str, str] | None:
        file = self.root / "confirmed" / f"{run_id}.json"
        return dict(json.loads(file.read_text())) if file.exists() else None

    def confirm(self, run_id: str, envelope: bytes) -> None:
        """The custodian's signed yes (`policies.documents.RunConfirmation`); the gateway verifies it."""
        write(self.root / "confirmed" / f"{run_id}.dsse", envelope)

    def confirmed(self, run_id: str) -> bytes | None:
        file = self.root / "confirmed" / f"{run_id}.dsse"
        return file.read_bytes() if file.exists() else None

    def forget_said(self, run_id: str) -> None:
        for kind in ("json", "dsse"):
            (self.root / "confirmed" / f"{run_id}.{kind}").unlink(missing_ok=True)

    def ask_to_stop(self, run_id: str, by: str) -> None:
        """The custodian's word on a running run: no more of it here. On a full disk the file is empty: its name says
        it. Raises OSError."""
        file = self.root / "stopped" / f"{run_id}.json"
        try:
            write(file, json.dumps({"by": by}).encode())
        except OSError as error:
            if not is_full(error):
                raise
            file.touch(mode=0o600)

    def stop_asked(self, run_id: str) -> dict[str, str] | None:
        file = self.root / "stopped" / f"{run_id}.json"
        return dict(json.loads(file.read_text() or '{"by": ""}')) if file.exists() else None

    def forget_stop(self, run_id: str) -> None:
        (self.root / "stopped" / f"{run_id}.json").unlink(missing_ok=True)


def enrolled(root: Path) -> Home:
    """The home of a site that has joined. Raises CannotProceed: in a folder that is none nothing runs and nothing
    waits, and whoever mistyped its name would go home reassured."""
    if not (root / "site.json").is_file():
        what = (
            f"{root} is no gateway's folder: look at how it is spelled, or join a federation first: msfl gateway enrol"
        )
        raise CannotProceed(what)
    return Home(root)


def write(file: Path, data: bytes, mode: int = 0o600) -> None:
    """Whole or not at all, and durable."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(file, data, mode)
