"""Which runtime a gateway or an orchestrator uses: its administrator's choice, kept with its settings.

    {"kind": "process"}
    {"kind": "docker", "engine": "unix:///var/run/docker.sock", "oci_runtime": "runsc"}

A runtime that cannot be had is an error at the start, never silently another one: a site's policies count on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from msfl.policies.refusals import CannotProceed
from msfl.runtime.interface import Runtime

DEFAULT_ENGINE = "unix:///var/run/docker.sock"


class RuntimeKind(StrEnum):
    PROCESS = "process"
    DOCKER = "docker"


@dataclass(frozen=True)
class RuntimeChoice:
    """`engine`: the socket of a Docker-compatible engine on this machine. `oci_runtime`: one of those that the engine
    knows, its default where empty."""

    kind: RuntimeKind = RuntimeKind.PROCESS
    engine: str = DEFAULT_ENGINE
    oci_runtime: str = ""

    @property
    def shown(self) -> str:
        if self.kind is RuntimeKind.PROCESS:
            return self.kind.value
        return " ".join(word for word in (self.kind.value, self.engine, self.oci_runtime) if word)

    @classmethod
    def read(cls, given: object, where: str) -> RuntimeChoice:
        """What settings say; the default where they say nothing. Raises CannotProceed."""
        if given is None:
            return cls()
        known = ", ".join(RuntimeKind)
        if not isinstance(given, Mapping) or not all(isinstance(v, str) for v in given.values()):
            raise CannotProceed(
                f'{where}: runtime must be an object like {{"kind": "docker"}}, with kind one of {known}'
            )
        if unknown := set(given) - {"kind", "engine", "oci_runtime"}:
            raise CannotProceed(
                f"{where}: runtime knows kind, engine and oci_runtime, not {', '.join(sorted(unknown))}"
            )
        values: dict[str, Any] = dict(given)
        try:
            return cls(**{**values, "kind": RuntimeKind(values.get("kind", RuntimeKind.PROCESS))})
        except ValueError:
            raise CannotProceed(f"{where}: runtime is {values['kind']!r}; it must be one of {known}") from None

    def but(self, kind: RuntimeKind | None, engine: str | None, oci_runtime: str | None) -> RuntimeChoice:
        """As said on a command line, where anything was said."""
        return RuntimeChoice(
            self.kind if kind is None else kind,
            self.engine if engine is None else engine,
            self.oci_runtime if oci_runtime is None else oci_runtime,
        )

    def open(self, owner: str) -> Runtime:
        """`owner` names who starts processes with it, on this machine. Raises CannotProceed (EngineFails, too)."""
        if self.kind is RuntimeKind.PROCESS:
            from msfl.runtime.process import ProcessRuntime

            return ProcessRuntime()
        try:
            from msfl.runtime.docker import DockerRuntime
        except ModuleNotFoundError as error:
            raise CannotProceed(f"the docker runtime needs {error.name}: pip install 'msfl[docker]'") from error
        return DockerRuntime(self.engine, keeper=owner, oci_runtime=self.oci_runtime)


DEFAULT = RuntimeChoice()
