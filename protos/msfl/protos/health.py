"""From what was measured to what is wrong and how to mend it: the part of `doctor` that gateway and orchestrator share.

    probe.py measures ──▶ facts (frozen, plain) ──▶ the functions here ──▶ Findings, worst first
    a probe that failed ──▶ Unmeasured(why) ──▶ a finding of its own, beside the others

Pure: facts and the time are arguments. A certificate, a disk, a clock and a line are judged alike on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from msfl.policies.refusals import Refusal
from msfl.protos.certificates import CertificateFacts
from msfl.protos.messages import PROTOCOL
from msfl.protos.software import SOFTWARE

JsonObject: TypeAlias = dict[str, Any]
KEY_SET_SOON = timedelta(days=7)  # A set is good for 35 days at most.
GIB, MIB = 1 << 30, 1 << 20
DISK_BAD, DISK_WARN, MODELS = 500 * MIB, 5 * GIB, 3
FEW_INODES = 1000
# Certificates are dated back by five minutes; up to there nothing breaks.
SKEW_WARN, SKEW_BAD = timedelta(seconds=30), timedelta(minutes=5)


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """`what` happened, `where`, `why` it matters or came about, what to `do`; the last three may be empty."""

    check: str
    status: Status
    what: str
    where: str = ""
    why: str = ""
    do: str = ""

    def to_json(self) -> JsonObject:
        return asdict(self) | {"status": self.status.value}

    def line(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        why = f" ({self.why})" if self.why else ""
        do = f" → {self.do}" if self.do else ""
        return f"{self.status.value:<4}  {self.check}: {self.what}{place}{why}{do}"


@dataclass(frozen=True)
class Unmeasured:
    """What a probe could not find out, because of `why`."""

    why: str


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    order = [Status.BAD, Status.WARN, Status.OK]
    return sorted(findings, key=lambda f: order.index(f.status))


def healthy(findings: Iterable[Finding]) -> bool:
    """Nothing is bad. A warning is for reading, not for waking somebody."""
    return all(f.status is not Status.BAD for f in findings)


def unmeasured(check: str, what: str, where: str, found: Unmeasured, do: str = "") -> Finding:
    return Finding(check, Status.BAD, what, where, found.why, do)


# ----------------------------------------------------------------------------------------------------- certificates


def judge_certificate(
    whose: str, where: str, facts: CertificateFacts, now: datetime, *, soon: timedelta, renew: str
) -> list[Finding]:
    """`soon`: how much of its life may be left before a warning; `renew`: what to do about an old one."""
    found = []
    until = f"{facts.not_after:%Y-%m-%d %H:%M} UTC"
    if facts.fits_key is False:
        why = "one of the two was replaced without the other"
        found.append(Finding("certificate", Status.BAD, f"{whose} does not belong to its key", where, why, renew))
    if not facts.signed_by_ca:
        why = "nobody in this federation trusts it"
        what = f"{whose} is not signed by the federation's CA"
        found.append(Finding("certificate", Status.BAD, what, where, why, renew))
    if now < facts.not_before:
        what = f"{whose} is not valid before {facts.not_before:%Y-%m-%d %H:%M} UTC"
        found.append(Finding("certificate", Status.BAD, what, where, "the clock is behind", "set the clock (NTP)"))
    elif now >= facts.not_after:
        found.append(Finding("certificate", Status.BAD, f"{whose} has expired at {until}", where, "", renew))
    elif facts.not_after - now < soon:
        what = f"{whose} expires in {span(facts.not_after - now)}, at {until}"
        found.append(Finding("certificate", Status.WARN, what, where, "", renew))
    if not found:
        names = ", ".join(facts.names)
        what = f"{whose} is good for {span(facts.not_after - now)}" + (f", for {names}" if names else "")
        found.append(Finding("certificate", Status.OK, what, where))
    return found


def judge_expiry(
    check: str, what: str, where: str, expires: datetime, now: datetime, soon: timedelta, do: str
) -> Finding:
    """A signed document that is in force until `expires`."""
    left = expires - now
    if left <= timedelta(0):
        return Finding(check, Status.BAD, f"{what} has expired at {expires:%Y-%m-%d %H:%M} UTC", where, "", do)
    if left < soon:
        return Finding(check, Status.WARN, f"{what} expires in {span(left)}", where, "", do)
    return Finding(check, Status.OK, f"{what} is in force for {span(left)}", where)


def judge_trusted(
    what: str, where: str, found: datetime | Refusal | Unmeasured, now: datetime, soon: timedelta, do: str
) -> Finding:
    """A document that others rely on; `found` is until when it is in force, or why it is not trusted."""
    match found:
        case Unmeasured():
            return unmeasured("trust", f"{what} cannot be read", where, found, do)
        case Refusal(message=message):
            return Finding("trust", Status.BAD, f"{what} is not trusted", where, message, do)
        case _:
            return judge_expiry("trust", what, where, found, now, soon, do)


def judge_issuers(
    found: Sequence[tuple[str, datetime | Refusal]] | Unmeasured, where: str, now: datetime, do: str
) -> Iterable[Finding]:
    """The key sets of identity providers that have stewards, by issuer."""
    if isinstance(found, Unmeasured):
        yield unmeasured("trust", "the identity providers' key sets cannot be read", where, found, do)
        return
    for issuer, until in found:
        yield judge_trusted(f"the key set of {issuer}", where, until, now, KEY_SET_SOON, do)


# -------------------------------------------------------------------------------------------------------------- disk


@dataclass(frozen=True)
class DiskFacts:
    """`refused`: why nothing can be written there; empty when it can. `largest`: the biggest file of a run seen."""

    where: str
    free_bytes: int
    free_inodes: int | None
    refused: str = ""
    largest: int = 0


def judge_disk(facts: DiskFacts) -> list[Finding]:
    found = []
    if facts.refused:
        why = "keys, decisions and received streams must be kept before they count"
        do = "make the file system writable for this user (remount, chown), then start again"
        found.append(Finding("disk", Status.BAD, f"nothing can be written: {facts.refused}", facts.where, why, do))
    free, do = f"{facts.free_bytes / GIB:.1f} GiB free", "free some space, or move the folder to a larger disk"
    if facts.free_bytes < DISK_BAD:
        found.append(Finding("disk", Status.BAD, free, facts.where, "less than 500 MiB: runs will fail", do))
    elif facts.free_bytes < MODELS * facts.largest:
        why = f"less than {MODELS} times the largest file of a run, {facts.largest / GIB:.1f} GiB"
        found.append(Finding("disk", Status.WARN, free, facts.where, why, do))
    elif facts.free_bytes < DISK_WARN:
        found.append(Finding("disk", Status.WARN, free, facts.where, "less than 5 GiB", do))
    if facts.free_inodes is not None and facts.free_inodes < FEW_INODES:
        why = "the file system can hold hardly any more files, however much space is free"
        what = f"{facts.free_inodes} inodes left"
        found.append(Finding("disk", Status.BAD, what, facts.where, why, "remove many small files"))
    return found or [Finding("disk", Status.OK, free, facts.where)]


# ------------------------------------------------------------------------------------------------------------- clocks


def judge_newest(newest: datetime, now: datetime, where: str) -> Finding:
    """The newest entry of a record that this machine itself wrote, against its clock."""
    ahead = newest - now
    if ahead <= timedelta(seconds=5):
        return Finding("clock", Status.OK, "not set back since the newest entry", where)
    status = Status.BAD if ahead > SKEW_BAD else Status.WARN
    why = f"the newest entry is {span(ahead)} in the future: the clock was set back, or was ahead when it was written"
    return Finding(
        "clock", status, "the clock disagrees with the record", where, why, "check the clock (NTP: chronyc tracking)"
    )


def judge_skew(skew: timedelta, uncertainty: timedelta, peer: str) -> Finding:
    """`skew`: the peer's clock minus ours; `uncertainty`: half the round trip in which it was read."""
    certain = abs(skew) - uncertainty
    if certain <= SKEW_WARN:
        what = f"within {(abs(skew) + uncertainty).total_seconds():.2f} s of the orchestrator's"
        return Finding("clock", Status.OK, what, peer)
    status = Status.BAD if certain > SKEW_BAD else Status.WARN
    way = "behind" if skew > timedelta(0) else "ahead of"
    why = "certificates, tokens and policies are good for a time only, and each side looks at its own clock"
    do = "compare both with NTP (chronyc tracking) and mend the wrong one"
    return Finding("clock", status, f"this clock is {span(abs(skew))} {way} the orchestrator's", peer, why, do)


# -------------------------------------------------------------------------------------------------- a line to a server


class Step(StrEnum):
    """What has to work, one after the other, before two processes talk."""

    DNS = "dns"
    TCP = "tcp"
    TLS = "tls"
    RPC = "rpc"


class Fault(StrEnum):
    """What stopped a step, and so who can mend it."""

    NO_NAME = "no_name"
    REFUSED = "refused"
    NO_ANSWER = "no_answer"
    UNREACHABLE = "unreachable"
    NOT_TLS = "not_tls"
    CUT = "cut"
    THEIR_CERTIFICATE = "their_certificate"
    OUR_CERTIFICATE = "our_certificate"
    OTHER_SOFTWARE = "other_software"
    NOT_ADMITTED = "not_admitted"
    NO_REPLY = "no_reply"


@dataclass(frozen=True)
class StepFacts:
    """`fault` is None when the step worked; `said`: the words of the library that failed."""

    step: Step
    seconds: float
    fault: Fault | None = None
    said: str = ""


@dataclass(frozen=True)
class Peer:
    """What the other end said of itself. `skew`: its clock minus ours, `uncertainty` half the round trip."""

    protocol: int
    software: str
    skew: timedelta
    uncertainty: timedelta


@dataclass(frozen=True)
class LineFacts:
    """`steps` end with the first that failed."""

    endpoint: str
    steps: tuple[StepFacts, ...]
    peer: Peer | None = None


_FAULTS: dict[Fault, tuple[str, str]] = {
    Fault.NO_NAME: ("the name cannot be resolved", "check the name in site.json, and this machine's DNS"),
    Fault.REFUSED: (
        "the machine answers and nothing listens on this port",
        "ask the operator whether `msfl orchestrator serve` runs, and on which port",
    ),
    Fault.NO_ANSWER: (
        "nothing comes back: a firewall drops it, or the machine is down",
        "have outgoing TCP to this address and port allowed, then ask the operator",
    ),
    Fault.UNREACHABLE: ("there is no route to it", "check this machine's network and routing"),
    Fault.NOT_TLS: ("what answers does not speak TLS", "check host and port; a proxy in between must pass TLS through"),
    Fault.CUT: (
        "the connection was cut in the handshake",
        "look for a firewall that inspects TLS; it must pass this address through unchanged",
    ),
    Fault.THEIR_CERTIFICATE: (
        "the other end's certificate is not good, so the fault is not at this site, unless the clock is wrong",
        "check the clock; tell the operator (`msfl orchestrator doctor`); a TLS-inspecting proxy looks the same",
    ),
    Fault.OUR_CERTIFICATE: (
        "the other end cut the line when it had seen this site's certificate",
        "see the certificate's own line; is it good, ask the operator what the orchestrator's log says",
    ),
    Fault.OTHER_SOFTWARE: ("the other end is older and does not know the call", "update the orchestrator"),
    Fault.NOT_ADMITTED: ("the orchestrator knows this site's certificate and refuses it", "ask the operator"),
    Fault.NO_REPLY: ("connected, and no reply", "ask the operator to look at the orchestrator's log"),
}


def judge_line(facts: LineFacts) -> list[Finding]:
    found = []
    for step in facts.steps:
        if step.fault is None:
            found.append(Finding(step.step.value, Status.OK, f"works, {step.seconds * 1000:.0f} ms", facts.endpoint))
        else:
            why, do = _FAULTS[step.fault]
            said = f"{why}; {step.said}" if step.said else why
            found.append(Finding(step.step.value, Status.BAD, f"fails: {step.fault.value}", facts.endpoint, said, do))
    if facts.peer is not None:
        found += judge_peer(facts.peer, facts.endpoint)
    return found


def judge_peer(peer: Peer, endpoint: str) -> list[Finding]:
    found = [judge_skew(peer.skew, peer.uncertainty, endpoint)]
    if peer.protocol != PROTOCOL:
        what = f"the orchestrator speaks protocol {peer.protocol}, this gateway {PROTOCOL}"
        found.append(Finding("version", Status.BAD, what, endpoint, "they will not talk", "update the older one"))
    elif peer.software != SOFTWARE:
        what = f"the orchestrator is {peer.software}, this is {SOFTWARE}"
        found.append(
            Finding("version", Status.WARN, what, endpoint, "the protocol is the same", "update the older one")
        )
    else:
        found.append(Finding("version", Status.OK, f"both are {SOFTWARE}, protocol {PROTOCOL}", endpoint))
    return found


def span(length: timedelta) -> str:
    """A length of time as people say it: `9 days`, `3 h`, `12 min`, `4 s`."""
    seconds = length.total_seconds()
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def report(findings: Sequence[Finding], *, as_json: bool) -> str:
    """For standard output: a line per finding and what it comes to, or a JSON list of findings."""
    if as_json:
        return json.dumps([finding.to_json() for finding in findings], indent=1)
    counts = {status: sum(f.status is status for f in findings) for status in Status}
    total = f"{counts[Status.BAD]} bad, {counts[Status.WARN]} to look at, {counts[Status.OK]} well"
    return "\n".join([*(f.line() for f in findings), total])
