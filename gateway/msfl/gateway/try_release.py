"""`msfl registry try RELEASE`: what would leave a site, before anybody else has seen the release.

    build ▸ pull as a site does ▸ `rehearsal` on made-up data, or on `--data` ▸ plain words

Without `--base` it runs as sandboxed processes, with the packages of this machine; with it in containers on that base.

Exit code: 0 nothing was blocked, 3 the gate blocked something, 1 the release failed; its own words are then shown,
which at a site they never are.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from msfl.registry.terminal import Base, Release, fail
from msfl.runtime.options import EngineOption, OciRuntimeOption

if TYPE_CHECKING:
    from msfl.gateway.rehearsal import Rehearsed, Sent
    from msfl.policies.documents import ReleaseStatement


def try_(
    release: Release,
    profile: Annotated[str, typer.Option(help="The profile to run; `demo` where there is one.")] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your own data in nnU-Net raw layout, instead of made-up ones.", exists=True, file_okay=False
        ),
    ] = None,
    base: Base = None,
    engine: EngineOption = None,
    oci_runtime: OciRuntimeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Run a release through every task, alone on this machine, and say what would leave a site. With `--base` in
    containers."""
    from msfl.gateway.rehearsal import SITES, made_up_data, rehearse
    from msfl.policies.refusals import CannotProceed, Refused
    from msfl.policies.resolve import profile_flaws
    from msfl.registry.cache import ImageCache
    from msfl.registry.making import built_release
    from msfl.registry.oci_layout import LayoutRegistry
    from msfl.registry.publish import push_release
    from msfl.registry.pull import pull
    from msfl.runtime.choice import RuntimeChoice, RuntimeKind
    from msfl.runtime.hosted import ProcessGone, TaskFailed

    if base is None and (engine, oci_runtime) != (None, None):
        fail("Containers need an image with everything in it: name one with --base.", 2)
    kind = RuntimeKind.PROCESS if base is None else RuntimeKind.DOCKER
    try:
        runtime = RuntimeChoice().but(kind, engine or os.environ.get("DOCKER_HOST"), oci_runtime).open("try")
    except CannotProceed as error:
        fail(str(error))
    with (
        tempfile.TemporaryDirectory(prefix="msfl-try-") as name,
        built_release(release, base) as built,
        Console(stderr=True).status("pulling …") as status,
    ):
        folder = Path(name)
        now = datetime.now(UTC).replace(microsecond=0)
        statement = built.statement(publisher="nobody", commit="unknown", issued=now, expires=now + timedelta(days=1))
        if flaws := profile_flaws(statement):
            fail("\n".join(flaw.message for flaw in flaws))
        registry = LayoutRegistry.create(folder / "registry")
        digest = push_release(registry, built)
        image = pull(registry, digest, ImageCache(folder / "cache"), by="try", whole=runtime.whole_images)
        status.update("making up data …")
        sites = made_up_data(folder / "data") if data is None else dict.fromkeys(SITES, data.resolve())
        at = "start"

        def say(step: str) -> None:
            nonlocal at
            at = step
            status.update(f"{step} …")

        try:
            found = rehearse(
                image,
                statement,
                _config(statement, profile),
                sites,
                runtime,
                folder / "run",
                say,
            )
        except TaskFailed as failed:
            fail(f"The release failed ({at}) with the code {failed.code}:\n{failed.detail}{_hint(failed.detail)}")
        except ProcessGone as gone:
            words = gone.log.read_text(errors="replace")[-4000:] if gone.log.exists() else ""
            fail(
                f"A process of the release ended by itself ({at}; {gone.code}). Its last words:\n{words or 'none'}"
                f"{_hint(words)}"
            )
        except Refused as refused:
            fail(refused.refusal.message)
    text = json.dumps(_as_json(found)) if as_json else "\n".join(in_words(found, made_up=data is None))
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
    raise typer.Exit(3 if found.blocked else 0)


def _hint(said: str) -> str:
    """A package that is installed here and not found in there: the commonest mistake of a first release."""
    missing = re.search(r"No module named '([\w]+)", said)
    if missing is None or missing[1] not in importlib.metadata.packages_distributions():
        return ""
    return (
        f"\n{missing[1]} is installed here, but a release finds only what it requires: name its package under "
        "`requires` in release.yaml, or its module under `code`."
    )


def in_words(found: Rehearsed, *, made_up: bool) -> Iterable[str]:
    yield f"{found.release}, {found.digest}"
    data = "made-up data at two sites" if made_up else "your data, which stand for two sites"
    yield f"Tried on {data}, with these walls around it:"
    yield from (f"  {line}" for line in found.protections)
    yield ""
    yield "What would leave a site, at most; its policy may allow less:"
    if found.progress:
        yield f"  while it works, now and then: steps done of steps to do, and {', '.join(sorted(found.progress))}"
    fullest: dict[str, Sent] = {}
    for sent in found.sent:
        before = fullest.get(task := sent.task.split("/")[0])
        if before is None or len(str(sent.document)) > len(str(before.document)):
            fullest[task] = sent
    for sent in fullest.values():
        yield from _sent_in_words(sent)
    if found.exported:
        yield f"  The centre exports the model: a zip of {_size(found.exported)}."
    if found.figures:
        yield f"Pictures that stay at the site: {', '.join(sorted(found.figures))}."
    if found.kept:
        yield f"Said while it works, and kept at the site: {', '.join(sorted(found.kept))}."
    yield ""
    for blocked in found.blocked:
        yield f"BLOCKED in {blocked.task} at {blocked.site}: {blocked.why}"
        if blocked.more:
            yield f"  In full: {blocked.more}"
    if not found.blocked:
        yield "Nothing was blocked."
    if found.unused:
        yield "Declared under outputs, and never sent here. Take it out, or tell the reviewers when it is sent:"
        yield from (f"  {name}" for name in found.unused)


_TITLES = {
    "train": "train, each round",
    "validate": "validate, before the best round is chosen",
    "baseline": "the site's own model, if asked for and its policy allows it",
}


def _sent_in_words(sent: Sent) -> Iterable[str]:
    task = sent.task.split("/")[0]
    yield f"  {_TITLES.get(task, task)}: {_size(len(json.dumps(sent.document)))} of numbers and names"
    for name, what in _contents(sent.document):
        yield f"    {name}: {what}"
    if sent.tensors is not None:
        numbers = sum(math.prod(shape) for shape in sent.tensors.shapes.values())
        yield f"    weights: {len(sent.tensors.shapes)} tensors, {numbers} float32 numbers, {_size(sent.tensors.bytes)}"
        for name, shape in list(sent.tensors.shapes.items())[:12]:
            yield f"      {name} {' × '.join(map(str, shape)) or 'one number'}"
        if (more := len(sent.tensors.shapes) - 12) > 0:
            yield f"      and {more} more; all of them with --json"


def _contents(document: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for key, value in document.items():
        name = f"{path}{key}"
        match value:
            case dict() if len(value) > 1 and all(isinstance(inner, dict) for inner in value.values()) and not path:
                yield name, f"for each of {', '.join(value)}"
                yield from _contents(next(iter(value.values())), f"{name}.….")
            case dict() if value and len(path.split(".")) < 4:
                yield from _contents(value, f"{name}.")
            case list():
                yield name, f"{_numbers(value)} numbers" if _numbers(value) else f"{len(value)} words"
            case None:
                continue
            case _:
                yield name, str(value)


def _numbers(value: object) -> int:
    match value:
        case list():
            return sum(map(_numbers, value))
        case int() | float():
            return 1
        case _:
            return 0


def _size(n: int) -> str:
    return f"{n} bytes" if n < 10_000 else f"{n / 1e3:.0f} kB" if n < 1e7 else f"{n / 1e6:.1f} MB"


def _config(statement: ReleaseStatement, profile: str) -> dict[str, Any]:
    from msfl.gateway.rehearsal import ROUNDS

    name = profile or ("demo" if "demo" in statement.profiles else min(statement.profiles))
    if name not in statement.profiles:
        fail(f"The release has no profile {name}; it has {', '.join(sorted(statement.profiles))}.")
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in statement.profiles[name].items()}
    return {**config, "profile": name, "rounds": ROUNDS, "wire": "float32"}


def _as_json(found: Rehearsed) -> dict[str, Any]:
    return {
        "release": found.release,
        "digest": found.digest,
        "protections": list(found.protections),
        "sent": [
            {
                "task": sent.task,
                "site": sent.site,
                "document": sent.document,
                "tensors": {name: list(shape) for name, shape in sent.tensors.shapes.items()} if sent.tensors else None,
                "tensor_bytes": sent.tensors.bytes if sent.tensors else 0,
            }
            for sent in found.sent
        ],
        "blocked": [{"task": b.task, "site": b.site, "why": b.why, "more": b.more} for b in found.blocked],
        "unused": list(found.unused),
        "progress": sorted(found.progress),
        "progress_kept": sorted(found.kept),
        "figures": sorted(found.figures),
        "exported_bytes": found.exported,
    }
