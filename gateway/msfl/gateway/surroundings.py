"""What every run of a gateway shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from msfl.gateway.home import Home
from msfl.gateway.judge import Judge
from msfl.gateway.ledger import Ledger
from msfl.gateway.link import Link
from msfl.gateway.standing import Standing
from msfl.gateway.witness import Witness
from msfl.protos.audit_log import AuditLog
from msfl.registry.cache import ImageCache
from msfl.registry.interface import Registry
from msfl.runtime.interface import Runtime


@dataclass(frozen=True)
class Surroundings:
    home: Home
    judge: Judge
    ledger: Ledger
    audit: AuditLog
    registry: Registry
    images: ImageCache
    runtime: Runtime
    link: Link
    witness: Witness
    clock: Callable[[], datetime]
    standing: Standing
