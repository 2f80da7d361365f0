"""The releases a federation has, and how the centre starts the aggregator of one: trusted, resolved, pulled, verified.

The centre runs the same chain of checks as a site before it starts anything: a signed statement, enough reviews, the
digest, the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from msfl.orchestrator.aggregator import Aggregator, HandOver
from msfl.orchestrator.driver import CentralProcess
from msfl.orchestrator.runs.machine import RunState
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.policies.resolve import resolve_config
from msfl.policies.trust import Revoked, TrustedFederationRoot, TrustedRelease
from msfl.registry.cache import ImageCache
from msfl.registry.interface import Registry
from msfl.registry.publish import list_releases, publication
from msfl.registry.pull import pull
from msfl.runtime.interface import Runtime, StartOrder

JsonObject: TypeAlias = dict[str, Any]


class Releases:
    def __init__(
        self,
        registry: Registry,
        root: TrustedFederationRoot,
        clock: Callable[[], datetime],
        revoked: Callable[[], Revoked],
    ) -> None:
        self._registry = registry
        self._root = root
        self._clock = clock
        self._revoked = revoked

    def listed(self) -> list[JsonObject]:
        """Every tagged release, with what stands between it and being used."""
        rows = []
        for ref, digest in list_releases(self._registry):
            trusted = self.trusted(digest)
            row: JsonObject = {"release": ref, "digest": digest}
            if isinstance(trusted, Refusal):
                rows.append({**row, "status": trusted.code.value, "reviewers": []})
            else:
                rows.append(
                    {
                        **row,
                        "status": "published",
                        "publisher": trusted.publisher,
                        "reviewers": list(trusted.reviewers),
                        "profiles": {k: dict(v) for k, v in trusted.statement.profiles.items()},
                        "description": trusted.statement.description,
                    }
                )
        return rows

    def trusted(self, digest: str) -> TrustedRelease | Refusal:
        return publication(self._registry, digest, self._root, self._clock(), self._revoked())


class AggregatorStarter:
    """Fulfils `driver.StartAggregator`."""

    def __init__(
        self, releases: Releases, registry: Registry, runtime: Runtime, keyring: HandOver, folder: Path
    ) -> None:
        self._releases = releases
        self._registry = registry
        self._runtime = runtime
        self._keyring = keyring
        self._folder = folder
        self._images = ImageCache(folder / "images")
        self._images.tidy(living=())  # No aggregator outlives its orchestrator.

    def __call__(self, state: RunState) -> tuple[CentralProcess, JsonObject]:
        """The aggregator, and what the run's record keeps of it: `config` as resolved, the stock profile, who vouches.

        Raises Refused, ProcessGone.
        """
        spec = state.spec
        if spec.digest is None:
            raise Refused(refuse(Code.JOB_INCONSISTENT, f"The job names {spec.release} without its digest."))
        release = self._releases.trusted(spec.digest)
        if isinstance(release, Refusal):
            raise Refused(release)
        config = resolve_config(spec, release.statement)
        if isinstance(config, Refusal):
            raise Refused(config)
        digest = release.statement.digest
        image = pull(self._registry, digest, self._images, by=state.run_id, whole=self._runtime.whole_images)
        folder = self._folder / state.run_id
        folder.mkdir(parents=True, exist_ok=True)
        order = StartOrder(
            run_id=state.run_id,
            image=image,
            release=spec.release,
            role="aggregator",
            folder=folder / "box",
            data=None,
            site=None,
            log=folder / "aggregator.log",
        )
        aggregator = Aggregator.start(
            self._runtime,
            order,
            run_id=state.run_id,
            config=config,
            keyring=self._keyring,
            min_sites=spec.min_sites,
        )
        facts = {
            "config": config,
            "stock": dict(release.statement.profiles.get("full", {})),
            "publisher": release.publisher,
            "reviewers": list(release.reviewers),
        }
        return aggregator, facts
