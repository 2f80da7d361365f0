"""How the commands of every part open a person's key: `--passphrase` asks, else the environment says it, if it does."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from msfl.policies.keys import passphrase_of


def secret_for(asked: bool, environ: Mapping[str, str]) -> bytes | None:
    """`asked`: the command was given `--passphrase`."""
    return passphrase_of(typer.prompt("Passphrase", hide_input=True) if asked else "", environ)
