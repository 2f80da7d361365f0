"""How a runtime is chosen on a command line: the same three options for gateways and orchestrators."""

from __future__ import annotations

from typing import Annotated

import typer

from msfl.runtime.choice import RuntimeKind

RuntimeOption = Annotated[
    RuntimeKind | None, typer.Option("--runtime", help="Run releases in a sandboxed process, or in a container.")
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="Socket of a Docker-compatible engine: unix:///var/run/docker.sock.")
]
OciRuntimeOption = Annotated[
    str | None,
    typer.Option("--oci-runtime", help="One that the engine knows, such as runsc; else its default."),
]
