"""The `msfl registry` commands.

    command                 does                                                                in
    init build push         from a recipe to an image in a registry                             `making`
    submit review publish   the signed way of a release to the sites, and back                  `reviewing`
    revoke status
    list show diff          what is there, what it is, what changed                             `reading`
    new try                 a release of one's own; what would leave a site                     other parts of msfl

A release is named by a folder with a release.yaml, or as one that comes with msfl (`nnunet`); what is pushed is named
`name:version`. Keys are PEM files; an encrypted one is opened with the passphrase in MSFL_KEY_PASSPHRASE.
Commands that need more than the registry come from the part that has it, by the entry points `msfl.commands.registry`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import typer

from msfl.registry import making, reading, reviewing
from msfl.registry.terminal import fail

app = typer.Typer(name="registry", no_args_is_help=True)


@app.callback()
def registry() -> None:
    """Build, try, push, submit, review and publish releases."""


def _add(point: EntryPoint) -> None:
    try:
        command = point.load()
    except ModuleNotFoundError as error:
        missing, needs = point.name, error.name or "?"

        def command() -> None:
            fail(f"`msfl registry {missing}` needs the package {needs}: pip install 'msfl[demo]'")

        command.__doc__ = "(not installed: pip install 'msfl[demo]')"
    app.command(name=point.name)(command)


for _point in sorted(entry_points(group="msfl.commands.registry")):
    _add(_point)
for _command in (
    *(making.init, making.build, making.push),
    *(reviewing.submit, reviewing.review, reviewing.publish, reviewing.revoke, reviewing.status),
    *(reading.show, reading.diff),
):
    app.command()(_command)
app.command("list")(reading.list_)
