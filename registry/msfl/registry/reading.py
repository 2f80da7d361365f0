"""`msfl registry list | show | diff`: what a registry holds, what a release is, and what changed since another one.

With `--root` every signature is checked; without it what is shown is the registry's word only, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msfl.registry.reviewing import standing_as_json, standing_in_words, standing_of, statement_at
from msfl.registry.terminal import (
    AccessFile,
    AsJson,
    MaybeRoot,
    Ref,
    RegistryAt,
    digest_of,
    fail,
    note,
    open_at,
    root_at,
    say,
)

if TYPE_CHECKING:
    from msfl.policies.documents import ReleaseStatement
    from msfl.registry.compare import Comparison
    from msfl.registry.release_image import ReleaseImage

_UNCHECKED = "No signature was checked: give the federation root with --root."
_NONE_IN_A_DIFF = "No signature was checked of either: msfl registry show REF --root ROOT does."


def list_(registry: RegistryAt, root: MaybeRoot = None, access: AccessFile = None, as_json: AsJson = False) -> None:
    """List the releases that the registry holds; with --root, where each stands."""
    from msfl.policies.refusals import Refused
    from msfl.registry.publish import list_releases, papers_of

    opened = open_at(registry, access)
    trusted = root_at(as_json, root) if root else None
    rows: list[dict[str, Any]] = []
    for ref, digest in list_releases(opened):
        try:
            papers = papers_of(opened, digest)
        except Refused as flooded:
            rows.append({"release": ref, "digest": digest, "state": flooded.refusal.code.value})
            continue
        row = {"release": ref, "digest": digest, "signed": papers.statement is not None, "reviews": len(papers.reviews)}
        rows.append({**row, "state": standing_of(opened, digest, *trusted).state.value} if trusted else row)
    lines = [
        f"{r['release']}  {r['digest']}  "
        + (r.get("state") or f"{'signed' if r['signed'] else 'not signed'}, {r['reviews']} reviews")
        for r in rows
    ]
    say(as_json, "\n".join(lines) or f"{registry} holds no release.", releases=rows)


def show(
    ref: Ref,
    registry: RegistryAt,
    root: MaybeRoot = None,
    card: Annotated[bool, typer.Option("--card", help="Print the model card instead.")] = False,
    sbom: Annotated[bool, typer.Option("--sbom", help="Print the SBOM instead, as CycloneDX.")] = False,
    statement_file: Annotated[
        Path | None,
        typer.Option("--statement", help="Write the signed statement there: what custodians' policies need."),
    ] = None,
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a release says of itself, where it stands, and who reviewed it with which words."""
    from msfl.registry.publish import CARD_TYPE, material_of
    from msfl.registry.release_image import materials_flaw, read_image
    from msfl.registry.sbom import SBOM_TYPE

    opened = open_at(registry, access)
    digest = digest_of(opened, ref)
    envelope, statement = statement_at(opened, digest)
    if statement_file is not None and (card or sbom):
        fail("Give --statement FILE without --card and --sbom.", 2)
    if card or sbom:
        named = statement.materials
        if named is None:
            fail(f"{statement.ref} has no materials: its statement is of msfl/v1")
        wanted = (CARD_TYPE, named.model_card) if card else (SBOM_TYPE, named.sbom)
        found = material_of(opened, digest, *wanted)
        if found is None:
            fail(f"nothing attached to {digest} has the hash {wanted[1]} that the statement names")
        words = found[0].decode("utf-8", "replace")
        say(as_json, words, content=words, media_type=found[1], sha256=wanted[1])
        return
    image, flaw = read_image(opened, digest), materials_flaw(opened, statement)
    standing = standing_of(opened, digest, *root_at(as_json, root)) if root else None
    lines = [*_release_in_words(statement, image)]
    lines += [f"FLAW: {flaw.message}"] if flaw else []
    lines += ["", *standing_in_words(ref, standing)] if standing else []
    if statement_file is not None:
        _write_new(statement_file, envelope)
        lines += ["", f"Its signed statement is in {statement_file}."]
    say(
        as_json,
        "\n".join(lines),
        statement=statement.model_dump(mode="json"),
        flaw=flaw.to_json() if flaw else None,
        standing=standing_as_json(standing) if standing else None,
    )
    if standing is None:
        note(_UNCHECKED)


def diff(
    old: Ref,
    new: Ref,
    registry: RegistryAt,
    code: Annotated[bool, typer.Option("--code", help="Print the changed lines of code, too.")] = False,
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what changed from one release to another: code, dependencies, settings, what may leave, base image."""
    from msfl.registry.compare import code_diff, compare
    from msfl.registry.release_image import read_image

    opened = open_at(registry, access)
    digests = digest_of(opened, old), digest_of(opened, new)
    (_, before), (_, after) = (statement_at(opened, digest) for digest in digests)
    images = tuple(read_image(opened, digest) for digest in digests)
    found = compare(before, after, *images)
    lines = [f"From {before.ref} to {after.ref}:", *_comparison_in_words(found)]
    delta = list(code_diff(images[0].code, images[1].code, [c.name for c in found.code])) if code else []
    say(
        as_json,
        "\n".join([*lines, *([""] if delta else []), *delta]),
        old={"release": before.ref, "digest": digests[0]},
        new={"release": after.ref, "digest": digests[1]},
        code=[vars(c) for c in found.code],
        dependencies=[vars(d) for d in found.dependencies],
        changes=[{"way": c.way.value, "field": c.field, "what": c.what} for c in found.changes],
        lines=delta,
    )
    note(_NONE_IN_A_DIFF)


def _write_new(file: Path, data: bytes) -> None:
    try:
        with file.open("xb") as target:
            target.write(data)
    except FileExistsError:
        fail(f"{file} is there already; nothing was written. Give another name.")


def _release_in_words(statement: ReleaseStatement, image: ReleaseImage) -> list[str]:
    from msfl.policies.changes import bounds_in_words
    from msfl.policies.documents import format_utc
    from msfl.registry.compare import declared_fields

    text = " ".join(statement.description.split())
    base = (
        f"{image.base_name or 'a base'} {image.base_digest}" if image.base_digest else "none; it needs a fitting host"
    )
    lines = [
        f"{statement.ref}  {statement.digest}",
        f"  {text}" if text else "  (no description)",
        f"  publisher    {statement.publisher}, {format_utc(statement.issued)} to {format_utc(statement.expires)}",
        f"  source       commit {statement.commit}",
        f"  runs         {' '.join(statement.entrypoint)}, for {', '.join(statement.tasks)}",
        f"  needs        {statement.resources.gpus} GPUs, {statement.resources.memory_gib} GiB of memory",
        f"  base image   {base}",
        f"  holds        {len(image.code)} files of code, {len(image.lock.distributions)} packages, "
        f"{image.layers} layers, {image.bytes / 1e6:.1f} MB",
        f"  profiles     {', '.join(statement.profiles)}",
        "  settings     (nothing else can be set)",
    ]
    for name, bound in statement.config.items():
        words = bounds_in_words(bound)
        lines.append(f"    {name}: {bound.type}{', ' + words if words else ''}")
    lines.append("  may leave    (nothing else does)")
    for verb, names in declared_fields(statement.outputs).items():
        weights = ["weights"] if verb == "train" else []
        lines.append(f"    {verb}: {', '.join([*weights, *names]) or 'see --json'}")
    return lines


def _comparison_in_words(found: Comparison) -> list[str]:
    if found.nothing:
        return ["  nothing that a site could notice"]
    lines = []
    for file in found.code:
        lines.append(f"  code {file.what}: {file.name} (+{file.lines_added} −{file.lines_removed} lines)")
    for one in found.dependencies:
        match one.before, one.after:
            case "", after:
                lines.append(f"  dependency added: {one.name} {after}")
            case before, "":
                lines.append(f"  dependency removed: {one.name} {before}")
            case before, after if before == after:
                lines.append(f"  dependency {one.name} {after}: the same version with other files")
            case before, after:
                lines.append(f"  dependency {one.name}: {after} instead of {before}")
    return [*lines, *(f"  {change}" for change in found.changes)]
