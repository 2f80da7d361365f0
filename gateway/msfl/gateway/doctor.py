"""`msfl gateway doctor`: what is wrong at a site, and how to mend it.

    measure(home, now) ─▶ SiteFacts ─▶ examine(facts) ─▶ Findings      nothing is changed, nothing sent but `Health`

Each fact is measured by itself: where one cannot be, it is `Unmeasured`, a finding of its own, and the others stand.
The steps of the line are named one by one, so that staff see whether to call the network's people or the operator.
"""

from __future__ import annotations

import json
import os
import platform
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from msfl.gateway.datasets import closed_to
from msfl.gateway.home import Home, SiteSettings
from msfl.gateway.ledger import spent_here
from msfl.gateway.membership import expired_remedy
from msfl.gateway.memory import ISSUER_KEYS, remembered
from msfl.gateway.standing import policies_here, set_back
from msfl.policies.audit import from_line, verify
from msfl.policies.documents import AssetPolicy, Isolation, parse_utc
from msfl.policies.issuers import in_force_until
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.policies.trust import TrustedFederationRoot, TrustedSiteRoot, trust_timestamp
from msfl.protos.certificates import CertificateFacts, certificate_facts
from msfl.protos.channel import SITE_URI
from msfl.protos.health import (
    GIB,
    DiskFacts,
    Finding,
    LineFacts,
    Status,
    Unmeasured,
    judge_certificate,
    judge_disk,
    judge_expiry,
    judge_issuers,
    judge_line,
    judge_newest,
    judge_trusted,
    unmeasured,
)
from msfl.protos.probe import attempt, disk, largest_file, line
from msfl.protos.software import SOFTWARE
from msfl.registry.cache import CacheFacts, ImageCache
from msfl.registry.interface import RegistryFails
from msfl.registry.location import open_registry
from msfl.runtime.engine import UNPRIVILEGED
from msfl.runtime.interface import Protections

ROOT_SOON, CA_SOON, POLICY_SOON = timedelta(days=30), timedelta(days=180), timedelta(days=14)
TIMESTAMP_SOON = timedelta(hours=4)
_MORE_ISOLATION = "install bubblewrap and allow unprivileged user namespaces, or choose the runtime docker"
NEW_KEYS = "ask the operator: without it no user of this provider can start a run here (msfl issuer sign)"


@dataclass(frozen=True)
class AuditFacts:
    """`newest`: None for an empty log. `broken`: why the chain is not whole; empty when it is. `alarm`: the last one of
    two logs that contradict each other, as the gateway wrote it down."""

    entries: int
    newest: datetime | None
    broken: str
    alarm: str = ""


@dataclass(frozen=True)
class PolicyFacts:
    id: str
    not_before: datetime
    expires: datetime
    isolation: Isolation
    spent: str = ""

    @classmethod
    def of(cls, policy: AssetPolicy, runs: int = 0, rounds: int = 0) -> PolicyFacts:
        """`spent`: which of its budgets is used up."""
        used = (("runs", runs, policy.approval.max_runs), ("rounds", rounds, policy.approval.max_rounds))
        spent = [f"{n} of {most} {what}" for what, n, most in used if n >= most]
        return cls(policy.id, policy.not_before, policy.expires, policy.isolation, " and ".join(spent))


@dataclass(frozen=True)
class SiteFacts:
    """Everything `examine` looks at. `exposed`: files that others on this machine may open. Roots: in force until when,
    or why not trusted. `datasets`: id, folder, what is wrong with it. `tags`: how many releases the registry has;
    `images`: what is kept of them here.
    `closed`: a dataset, and the first file or folder of it that the user of the containers may not read.
    `issuers`: identity providers with stewards, and until when their keys are good."""

    home: Path
    now: datetime
    settings: SiteSettings | Unmeasured
    exposed: tuple[str, ...] | Unmeasured
    certificate: CertificateFacts | Unmeasured
    ca: CertificateFacts | Unmeasured
    site_root: datetime | Refusal | Unmeasured
    federation_root: datetime | Refusal | Unmeasured
    timestamp: datetime | Refusal | Unmeasured
    policies: tuple[tuple[PolicyFacts, ...], tuple[Refusal, ...]] | Unmeasured
    datasets: tuple[tuple[str, str, str], ...] | Unmeasured
    audit: AuditFacts | Unmeasured
    disk: DiskFacts | Unmeasured
    line: LineFacts | Unmeasured
    protections: Protections | Unmeasured
    tags: int | Unmeasured
    images: CacheFacts | Unmeasured
    pending: tuple[str, ...] | Unmeasured
    issuers: tuple[tuple[str, datetime | Refusal], ...] | Unmeasured = ()
    closed: tuple[tuple[str, str], ...] | Unmeasured = ()
    clock: Refusal | Unmeasured | None = None


# ------------------------------------------------------------------------------------------------------------ measure


def measure(root: Path, now: datetime) -> SiteFacts:
    home = Home(root)
    settings = attempt(home.settings)
    runtime = attempt(lambda: home.settings().runtime.open("doctor"))
    return SiteFacts(
        home=root,
        now=now,
        settings=settings,
        exposed=attempt(lambda: _exposed(root)),
        certificate=attempt(lambda: _certificate(home)),
        ca=attempt(lambda: certificate_facts(home.ca_pem, home.ca_pem)),
        site_root=attempt(lambda: _until(home.site_root(now))),
        federation_root=attempt(lambda: _until(home.federation_root(now))),
        timestamp=attempt(lambda: _timestamp(home, now)),
        policies=attempt(lambda: _policies(home, now)),
        datasets=attempt(lambda: tuple(_datasets(home))),
        audit=attempt(lambda: _audit(root / "audit" / "log.jsonl")),
        disk=attempt(lambda: disk(root, largest_file(home.runs))),
        line=attempt(lambda: line(home.settings().link_endpoint, home.ca_pem, home.identity_file)),
        protections=runtime if isinstance(runtime, Unmeasured) else runtime.protections(),
        tags=attempt(lambda: _tags(home), (RegistryFails,)),
        images=attempt(lambda: ImageCache(home.images, home.settings().images_bytes).facts()),
        pending=attempt(lambda: tuple(home.pending())),
        issuers=attempt(lambda: _issuers(home, now)),
        clock=attempt(lambda: _clock(home, now)),
        closed=attempt(lambda: tuple(_closed(home, None if isinstance(runtime, Unmeasured) else runtime.reads_as))),
    )


def _tags(home: Home) -> int:
    return len(open_registry(home.settings().registry, home.registry_access).tags())


def _exposed(root: Path) -> tuple[str, ...]:
    secrets = [root / "runs", *sorted((root / "tls").glob("*.pem")), *sorted((root / "secrets").iterdir())]
    secrets += sorted((root / "staff").glob("*"))
    return tuple(str(f.relative_to(root)) for f in secrets if stat.S_IMODE(f.stat().st_mode) & 0o077)


def _certificate(home: Home) -> CertificateFacts:
    identity = home.identity()
    return certificate_facts(identity.certificate_pem, home.ca_pem, identity.key_pem)


def _until(root: TrustedSiteRoot | TrustedFederationRoot | Refusal) -> datetime | Refusal:
    return root if isinstance(root, Refusal) else root.document.expires


def _timestamp(home: Home, now: datetime) -> datetime | Refusal:
    root = home.federation_root(now)
    if isinstance(root, Refusal):
        return root
    with remembered(home.memory_file) as memory:
        held = memory.kept("timestamp") if memory else None
    if held is None:
        return refuse(Code.TRUST_STALE, "None was ever heard of: has the gateway been on the line?")
    stamp = trust_timestamp(held, root)
    return stamp if isinstance(stamp, Refusal) else stamp.document.expires


def _issuers(home: Home, now: datetime) -> tuple[tuple[str, datetime | Refusal], ...]:
    root = home.federation_root(now)
    if isinstance(root, Refusal):
        return ()  # What is wrong with it has a line of its own.
    sets = home.key_sets.trusted(root)
    with remembered(home.memory_file) as memory:
        marks = {i: memory.mark(ISSUER_KEYS, i) if memory else None for i in (k.document.issuer for k in sets)}
    # An older one than was seen here, put back from a copy, does not count.
    sets = tuple(k for k in sets if (m := marks[k.document.issuer]) is None or m.version <= k.document.version)
    return in_force_until(root, sets)


def _policies(home: Home, now: datetime) -> tuple[tuple[PolicyFacts, ...], tuple[Refusal, ...]]:
    trusted, refused = policies_here(home, now)
    spent = spent_here(home.ledger_file, [policy.id for policy in trusted])
    return tuple(PolicyFacts.of(p.document, *spent[p.id]) for p in trusted), refused


def _clock(home: Home, now: datetime) -> Refusal | None:
    with remembered(home.memory_file) as memory:
        return set_back(memory, now) if memory else None


def _datasets(home: Home) -> Iterable[tuple[str, str, str]]:
    for file in sorted((home.root / "datasets").glob("*.json")):
        record = home.dataset(file.stem)
        if isinstance(record, Refusal):
            yield file.stem, str(file), record.message
            continue
        folder = attempt(lambda name=file.stem: home.dataset_folder(name))  # type: ignore[misc]  # bound at once
        if isinstance(folder, Unmeasured):
            yield file.stem, str(file), f"it is not known where the data lie ({folder.why})"
        else:
            yield file.stem, str(folder), "" if folder.is_dir() else "the folder is not there"


def _closed(home: Home, user: int | None) -> Iterable[tuple[str, str]]:
    """By the mode bits: root itself could open everything. A home that is another's has a gateway that is not us."""
    if user is None or home.root.stat().st_uid != os.getuid():
        return
    for record in home.datasets():
        folder = attempt(lambda name=record.id: home.dataset_folder(name))  # type: ignore[misc]  # bound at once
        path = None if isinstance(folder, Unmeasured) else closed_to(user, record, folder)
        if path is not None:
            yield record.id, str(path)


def _audit(file: Path) -> AuditFacts:
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    broken = verify(lines)
    last = from_line(lines[-1]) if lines else "empty"
    newest = None if isinstance(last, str) else parse_utc(last.at)
    entries = [] if broken else [json.loads(line) for line in lines if b"audit alarm" in line]
    alarms = [entry["fields"]["what"] for entry in entries if entry["action"] == "audit alarm"]
    return AuditFacts(len(lines), newest, broken.why if broken else "", alarms[-1] if alarms else "")


# ------------------------------------------------------------------------------------------------------------ examine


def examine(facts: SiteFacts) -> list[Finding]:
    """In the order in which trust is built; `health.worst_first` sorts them."""
    if isinstance(facts.settings, Unmeasured):
        do = "give the folder of an enrolled gateway with --home, or join with: msfl gateway enrol"
        first = unmeasured(
            "home", "the site's settings cannot be read", str(facts.home / "site.json"), facts.settings, do
        )
        site = "SITE"
    else:
        site = facts.settings.site
        first = Finding("home", Status.OK, f"{site} of {facts.settings.federation}", str(facts.home))
    return [
        first,
        *_judge_modes(facts),
        *_judge_certificates(facts, site),
        *_judge_roots(facts),
        *_judge_clock(facts),
        *_judge_timestamp(facts),
        *judge_issuers(facts.issuers, str(facts.home / "trust/issuers"), facts.now, NEW_KEYS),
        *_judge_policies(facts),
        *_judge_datasets(facts),
        *_judge_audit(facts),
        *_judge_surroundings(facts),
        *_judge_pending(facts),
    ]


def _judge_modes(facts: SiteFacts) -> Iterable[Finding]:
    where = str(facts.home)
    if isinstance(facts.exposed, Unmeasured):
        yield unmeasured("secrets", "the modes of secret files cannot be read", where, facts.exposed)
    elif facts.exposed:
        names = ", ".join(facts.exposed[:5]) + (" …" if len(facts.exposed) > 5 else "")
        why = "keys and runs' inputs are for the gateway's user alone"
        what = f"others on this machine may open {names}"
        yield Finding("secrets", Status.BAD, what, where, why, f"chmod -R go= {where}")
    else:
        yield Finding("secrets", Status.OK, "only the gateway's user may open them", where)


def _judge_certificates(facts: SiteFacts, site: str) -> Iterable[Finding]:
    where, ca = str(facts.home / "tls/identity.pem"), str(facts.home / "tls/ca.pem")
    found = facts.certificate
    if isinstance(found, Unmeasured):
        do = f"put the file back from a copy, or {expired_remedy(site)}"
        yield unmeasured("certificate", "this site's certificate cannot be read", where, found, do)
    else:
        # A gateway that serves renews it when a third is left: with a quarter left, something is in the way.
        soon = (found.not_after - found.not_before) / 4
        renew = expired_remedy(site)
        if facts.now < found.not_after:
            renew = f"it is renewed while `msfl gateway serve` runs; its log says why not. Else {renew}"
        yield from judge_certificate("this site's certificate", where, found, facts.now, soon=soon, renew=renew)
        if site != "SITE" and found.names != (f"{SITE_URI}{site}",):
            what = f"it is for {', '.join(found.names) or 'nobody'}, and this is {site}"
            yield Finding("certificate", Status.BAD, what, where, "the orchestrator takes us for another", renew)
    do = "ask the operator: the federation needs a new CA, and each site a new token and folder"
    if isinstance(facts.ca, Unmeasured):
        yield unmeasured("certificate", "the federation's CA certificate cannot be read", ca, facts.ca, do)
    else:
        yield from judge_certificate("the federation's CA", ca, facts.ca, facts.now, soon=CA_SOON, renew=do)


def _judge_roots(facts: SiteFacts) -> Iterable[Finding]:
    remedies = {
        "site root": (facts.site_root, "site-root.dsse", "custodians sign a new site root"),
        "federation root": (
            facts.federation_root,
            "federation-root.dsse",
            "ask the operator for the new federation root: without it every run is refused here",
        ),
    }
    for name, (root, file, do) in remedies.items():
        where = str(facts.home / "trust" / file)
        yield judge_trusted(f"the {name}", where, root, facts.now, ROOT_SOON, do)


def _judge_clock(facts: SiteFacts) -> Iterable[Finding]:
    where = str(facts.home / "trust" / "memory.sqlite")
    if isinstance(facts.clock, Unmeasured):
        yield unmeasured("clock", "what time it was before cannot be read", where, facts.clock)
    elif facts.clock is not None:
        do = "set the clock; where it is right now and was ahead before, a custodian says so: msfl gateway clock"
        yield Finding("clock", Status.BAD, "it was set back, so no run begins here", where, facts.clock.message, do)


def _judge_timestamp(facts: SiteFacts) -> Iterable[Finding]:
    name, where = "the federation's timestamp", str(facts.home / "trust" / "memory.sqlite")
    do = "ask the operator: without a fresh one no run begins here (msfl federation timestamp)"
    yield judge_trusted(name, where, facts.timestamp, facts.now, TIMESTAMP_SOON, do)


def _judge_policies(facts: SiteFacts) -> Iterable[Finding]:
    where, do = str(facts.home / "policies"), "a custodian signs a new one: msfl policy new, then msfl policy sign"
    if isinstance(facts.policies, Unmeasured):
        yield unmeasured("policies", "the policies cannot be read", where, facts.policies)
        return
    trusted, refused = facts.policies
    for refusal in refused:
        what = "a policy counts for nothing, and until it is signed anew or removed nothing begins on its datasets"
        yield Finding("policies", Status.WARN, what, where, refusal.message, do)
    if not trusted:
        yield Finding("policies", Status.WARN, "none is in force, so every run is refused here", where, "", do)
    for policy in trusted:
        if facts.now < policy.not_before:
            what = f"{policy.id} is in force only from {policy.not_before:%Y-%m-%d %H:%M} UTC"
            yield Finding("policies", Status.WARN, what, where)
        else:
            found = judge_expiry("policies", policy.id, where, policy.expires, facts.now, POLICY_SOON, do)
            # A site may let its policies end: that is a decision, no fault.
            yield replace(found, status=Status.WARN) if found.status is Status.BAD else found
        if policy.spent:
            do = "a custodian signs a new version with a larger budget, or lets it be"
            what = f"{policy.id} has no budget left: {policy.spent}"
            yield Finding("policies", Status.WARN, what, where, "every new run under it is refused", do)
        here = facts.protections
        if not isinstance(here, Unmeasured) and here.isolation < policy.isolation:
            what = f"{policy.id} asks for isolation {policy.isolation.value}, here is {here.isolation.value}"
            do = f"{_MORE_ISOLATION}, or a custodian signs a policy that asks for less"
            yield Finding("policies", Status.BAD, what, where, "every run under it is refused", do)


def _judge_datasets(facts: SiteFacts) -> Iterable[Finding]:
    if isinstance(facts.datasets, Unmeasured):
        yield unmeasured("datasets", "they cannot be read", str(facts.home / "datasets"), facts.datasets)
        return
    if not facts.datasets:
        do = "msfl data import, then msfl data publish"
        yield Finding("datasets", Status.WARN, "none is published", str(facts.home / "datasets"), "", do)
    if isinstance(facts.closed, Unmeasured):
        where = str(facts.home / "datasets")
        yield unmeasured("datasets", "who may read them cannot be found out", where, facts.closed)
    closed = {} if isinstance(facts.closed, Unmeasured) else dict(facts.closed)
    for name, where, wrong in facts.datasets:
        if wrong:
            do = "mount or restore the data, or publish it again: msfl data publish"
            yield Finding("datasets", Status.BAD, f"{name}: {wrong}", where, "runs on it fail", do)
        elif name in closed:
            what = f"{name}: {closed[name]} is closed to the user {UNPRIVILEGED}"
            why = "as the gateway is run by root, containers run as that user, and runs on it fail"
            do = "run the gateway as a user of its own that may read the data, or let that user read it: "
            yield Finding("datasets", Status.BAD, what, where, why, f"{do}setfacl -R -m u:{UNPRIVILEGED}:rX {where}")
        else:
            yield Finding("datasets", Status.OK, name, where)


def _judge_audit(facts: SiteFacts) -> Iterable[Finding]:
    where, found = str(facts.home / "audit/log.jsonl"), facts.audit
    if isinstance(found, Unmeasured):
        yield unmeasured("audit", "the audit log cannot be read", where, found, "the gateway does not serve without it")
        return
    if found.broken:
        do = "compare the log with your copies; the gateway does not serve with this one"
        yield Finding("audit", Status.BAD, "the chain is broken", where, found.broken, do)
    else:
        yield Finding("audit", Status.OK, f"the chain of {found.entries} entries is whole", where)
    if found.alarm:
        do = "stop the runs of this federation, and compare exported logs: msfl audit export, msfl audit verify"
        why = "a log was cut or put back from an older copy, here or at the centre"
        yield Finding("audit", Status.BAD, found.alarm, where, why, do)
    if found.newest is not None:
        yield judge_newest(found.newest, facts.now, where)


def _judge_surroundings(facts: SiteFacts) -> Iterable[Finding]:
    where = str(facts.home)
    if isinstance(facts.disk, Unmeasured):
        yield unmeasured("disk", "it cannot be measured", where, facts.disk)
    else:
        yield from judge_disk(facts.disk)
    if isinstance(facts.line, Unmeasured):
        yield unmeasured(
            "line", "the orchestrator cannot be dialled from this home", where, facts.line, "see the others"
        )
    else:
        yield from judge_line(facts.line)
    yield Finding("version", Status.OK, f"{SOFTWARE}, Python {platform.python_version()}")
    yield from _judge_isolation(facts)
    registry = "" if isinstance(facts.settings, Unmeasured) else facts.settings.registry
    if isinstance(facts.tags, Unmeasured):
        do = "mount the registry's folder at this place, readable for the gateway's user, or ask the operator"
        if "://" in registry:
            file = facts.home / "secrets/registry.json"
            do = f'if it wants a password: {{"user": …, "password": …}} in {file}, mode 0600; else ask the operator'
        yield unmeasured("registry", "it cannot be read, so no run can start", registry, facts.tags, do)
    else:
        yield Finding("registry", Status.OK, f"{facts.tags} releases", registry)
    yield from _judge_images(facts)


def _judge_images(facts: SiteFacts) -> Iterable[Finding]:
    where, kept = str(facts.home / "images"), facts.images
    if isinstance(kept, Unmeasured):
        yield unmeasured("images", "what is kept of them cannot be read", where, kept)
        return
    quota = kept.quota_bytes or 0
    what = f"{kept.images} kept, {kept.held} in use: {kept.bytes / GIB:.1f} of at most {quota / GIB:.1f} GiB"
    if kept.bytes <= quota:
        yield Finding("images", Status.OK, what, where)
    else:
        why = "those that no run uses go with the next pull; if the runs' own are too many, that pull is refused"
        yield Finding("images", Status.WARN, what, where, why, "raise images_gib in site.json, or let runs end")


def _judge_isolation(facts: SiteFacts) -> Iterable[Finding]:
    found, settings = facts.protections, facts.settings
    chosen = "" if isinstance(settings, Unmeasured) else settings.runtime.shown
    if isinstance(found, Unmeasured):
        do = "start the engine, let the gateway's user use its socket, or choose another runtime in site.json"
        yield unmeasured("isolation", "what workers run in is not to be had, so no worker starts", chosen, found, do)
        return
    contained = found.isolation is not Isolation.NONE
    status = Status.OK if contained else Status.WARN
    do = "" if contained else _MORE_ISOLATION
    yield Finding("isolation", status, found.isolation.value, chosen, " ".join(found.detail), do)


def _judge_pending(facts: SiteFacts) -> Iterable[Finding]:
    if isinstance(facts.pending, Unmeasured):
        yield unmeasured("runs", "those that wait cannot be read", str(facts.home / "pending"), facts.pending)
        return
    for run in facts.pending:
        do = f"msfl gateway pending, then msfl gateway confirm {run} or refuse {run}"
        yield Finding("runs", Status.WARN, f"{run} waits for the custodian", str(facts.home), "", do)
