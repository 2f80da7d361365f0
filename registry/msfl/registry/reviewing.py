"""`msfl registry submit | review | publish | revoke | status`: a release on its way to the sites.

submit   ─▶ image, SBOM, model card, and the statement that binds them          signed by the publisher
review   ─▶ approve or reject of exactly the statement that is there            signed by a reviewer, not the publisher
publish  ─▶ enough reviews? the publisher's mark, and signatures for other tools  signed by the publisher
revoke   ─▶ the federation's revocation list names it, for good                  signed by a keeper
status   ─▶ where it stands, and what is missing: what every site will find by itself
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msfl.registry.making import built_release, commit_of, put
from msfl.registry.terminal import (
    AccessFile,
    AsJson,
    Base,
    Days,
    Key,
    MaybeRoot,
    Publisher,
    Ref,
    RegistryAt,
    Release,
    Root,
    digest_of,
    fail,
    key_in,
    note,
    now,
    open_at,
    refused,
    root_at,
    say,
)

if TYPE_CHECKING:
    from msfl.policies.documents import ReleaseStatement
    from msfl.policies.keys import KeyPair
    from msfl.policies.release_state import Standing
    from msfl.policies.trust import Revoked, TrustedFederationRoot
    from msfl.registry.interface import Registry


def submit(
    release: Release,
    registry: RegistryAt,
    key: Key,
    publisher: Publisher,
    base: Base = None,
    root: MaybeRoot = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="A new statement for a release that has one: every review is asked anew."),
    ] = False,
    valid_days: Days = 365,
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Build a release, push it with its SBOM and model card, and sign the statement that reviewers will read."""
    from msfl.policies.encoding import encode
    from msfl.policies.envelope import RELEASE_STATEMENT, sign
    from msfl.policies.resolve import profile_flaws, unbounded
    from msfl.registry.build import find_recipe
    from msfl.registry.model_card import BadCard, find_card
    from msfl.registry.publish import attach_materials, submit_statement

    pair, opened, issued = key_in(key), open_at(registry, access), now()
    if root is not None:
        _must_hold(*root_at(as_json, root), "publishers", publisher, pair)
    with built_release(release, base) as built:
        recipe = find_recipe(release)
        try:
            card = find_card(recipe.parent)
        except BadCard as error:
            fail(f"{error}. Hospitals and reviewers read it; nothing was pushed.")
        sbom = built.sbom()
        statement = built.statement(
            publisher=publisher,
            commit=commit_of(recipe),
            issued=issued,
            expires=issued + timedelta(days=valid_days),
            materials=built.materials(sbom, card),
        )
        if flaws := profile_flaws(statement):
            fail("\n".join(flaw.message for flaw in flaws))
        if free := unbounded(statement):
            fail(f"{recipe}: {', '.join(free)} under config: neither min and max nor enum. Nothing was pushed.")
        if "TODO" in statement.description:
            fail(f"{recipe}: the description still says TODO. Hospitals and reviewers read it; nothing was pushed.")
        digest = put(opened, built)
    _must_be_new(opened, digest, statement, pair, again)
    attach_materials(opened, digest, sbom, card)
    submit_statement(opened, digest, sign(encode(statement), RELEASE_STATEMENT, [pair]))
    say(
        as_json,
        f"Submitted {statement.ref} as {digest}, signed by {publisher}. Now reviewers look: msfl registry show, diff "
        f"and review {statement.ref}.",
        release=statement.ref,
        digest=digest,
        key=pair.id,
        commit=statement.commit,
    )


def review(
    ref: Ref,
    registry: RegistryAt,
    key: Key,
    reviewer: Annotated[str, typer.Option(help="The reviewer's name in the federation root.")],
    reject: Annotated[
        bool, typer.Option("--reject", help="Reject instead of approve; say why with --comment.")
    ] = False,
    comment: Annotated[str, typer.Option(help="What you looked at, or why you reject.")] = "",
    root: MaybeRoot = None,
    valid_days: Days = 365,
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Approve or reject, signed, exactly the statement that is attached now. A later approval takes a reject back."""
    from msfl.policies.documents import Review
    from msfl.policies.encoding import encode
    from msfl.policies.envelope import RELEASE_STATEMENT, REVIEW, Signed, sign
    from msfl.policies.refusals import Code, refuse
    from msfl.registry.publish import add_review
    from msfl.registry.release_image import materials_flaw

    if reject and not comment:
        fail("A rejection says why: --comment. The publisher reads it.", 2)
    pair, opened = key_in(key), open_at(registry, access)
    digest = digest_of(opened, ref)
    if root is not None:
        trusted, revoked = root_at(as_json, root)
        _must_hold(trusted, revoked, "reviewers", reviewer, pair)
        if digest in revoked.releases:
            what = f"{ref} is revoked, for good: no review changes that."
            refused(as_json, refuse(Code.RELEASE_REVOKED, what, release=ref, digest=digest))
    envelope, statement = statement_at(opened, digest)
    if reviewer == statement.publisher:
        what = f"{statement.ref} was submitted by {statement.publisher}."
        refused(as_json, refuse(Code.OWN_RELEASE, what, release=statement.ref, publisher=statement.publisher))
    if not reject and (flaw := materials_flaw(opened, statement)) is not None:
        refused(as_json, flaw)
    issued = now()
    word = Review(
        digest=digest,
        statement_sha256=Signed.parse(envelope, RELEASE_STATEMENT).sha256,
        verdict="reject" if reject else "approve",
        comment=comment,
        reviewer=reviewer,
        issued=issued,
        expires=issued + timedelta(days=valid_days),
    )
    add_review(opened, digest, sign(encode(word), REVIEW, [pair]))
    say(
        as_json,
        f"{reviewer}: {word.verdict} {statement.ref}, {digest}, statement {word.statement_sha256}.",
        release=statement.ref,
        digest=digest,
        verdict=word.verdict,
        statement_sha256=word.statement_sha256,
    )
    if root is None:
        note(
            f"Nobody has checked whether the federation root names {reviewer}, with this key, among its reviewers: if "
            "not, this review counts for nothing. --root ROOT checks it."
        )


def publish(
    ref: Ref,
    registry: RegistryAt,
    root: Root,
    key: Key,
    publisher: Publisher,
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Mark a reviewed release as published, and sign it for other tools in cosign's layout."""
    from msfl.policies.documents import Publication
    from msfl.policies.encoding import encode
    from msfl.policies.envelope import PUBLICATION, RELEASE_STATEMENT, Signed, sign
    from msfl.policies.release_state import State
    from msfl.registry.cosign import add_attestation, add_signature
    from msfl.registry.publish import add_publication
    from msfl.registry.release_image import materials_flaw

    pair, opened = key_in(key), open_at(registry, access)
    digest = digest_of(opened, ref)
    trusted, revoked = root_at(as_json, root)
    standing = standing_of(opened, digest, trusted, revoked)
    if standing.why is not None:
        refused(as_json, standing.why)
    envelope, statement = statement_at(opened, digest)
    if (flaw := materials_flaw(opened, statement)) is not None:
        refused(as_json, flaw)
    if publisher != statement.publisher:
        fail(f"{statement.ref} was submitted by {statement.publisher}, who alone publishes it")
    _must_hold(trusted, revoked, "publishers", publisher, pair)
    word = Publication(
        digest=digest,
        statement_sha256=Signed.parse(envelope, RELEASE_STATEMENT).sha256,
        publisher=publisher,
        issued=now(),
    )
    if standing.state is not State.PUBLISHED:
        add_publication(opened, digest, sign(encode(word), PUBLICATION, [pair]))
        if (after := standing_of(opened, digest, trusted, revoked)).state is not State.PUBLISHED:
            fail(f"The registry does not show what was attached: {statement.ref} is {after.state.value}. Try again")
    reference = f"{registry.partition('://')[2] or statement.name}:{statement.name}_{statement.version}"
    tags = [
        add_signature(opened, digest, reference, pair, {"msfl.statement": word.statement_sha256}),
        add_attestation(opened, statement, statement.model_dump(mode="json"), pair),
    ]
    say(
        as_json,
        f"{statement.ref} is published: {digest}, reviewed by {', '.join(standing.approvals)}. Sites run it once their "
        f"policies name it. For other tools it is signed under the tags {' and '.join(tags)}.",
        release=statement.ref,
        digest=digest,
        publisher=publisher,
        reviewers=list(standing.approvals),
        cosign=tags,
    )


def revoke(
    ref: Ref,
    registry: RegistryAt,
    trust: Annotated[Path, typer.Option("--trust", help="The centre's trust/ folder.", exists=True, file_okay=False)],
    key: Annotated[Path, typer.Option(help="A keeper's private key, a PEM file.", exists=True, dir_okay=False)],
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Name a release in the federation's revocation list, for good: what runs on it ends. As msfl federation revoke."""
    from msfl.policies.federation import revoke_more

    # A digest is revoked wherever its image is now; a name is what the registry says it is.
    digest = ref if ref.startswith("sha256:") else digest_of(open_at(registry, access), ref)
    done = revoke_more(trust, key_in(key), releases=(digest,))
    say(
        as_json,
        f"{ref}, {digest}: {done}\nSites that are on the line take the list up within seconds. If this was a copy "
        "of the centre's trust/, carry it there.",
        digest=digest,
        done=done,
    )


def status(ref: Ref, registry: RegistryAt, root: Root, access: AccessFile = None, as_json: AsJson = False) -> None:
    """Say where a release stands, and what is missing. Exit code 3 where no site would take it."""
    opened = open_at(registry, access)
    digest = digest_of(opened, ref)
    standing = standing_of(opened, digest, *root_at(as_json, root))
    say(as_json, "\n".join(standing_in_words(ref, standing)), digest=digest, **standing_as_json(standing))
    if standing.why is not None:
        raise typer.Exit(3)


def _must_be_new(opened: Registry, digest: str, statement: ReleaseStatement, pair: KeyPair, again: bool) -> None:
    """Every new statement undoes the reviews of the one before, and sites then run the release no more. So it is never
    made by the way. What somebody else attached does not count here, as it counts nowhere."""
    from msfl.policies.documents import Member
    from msfl.policies.encoding import Malformed
    from msfl.policies.envelope import RELEASE_STATEMENT, Signed
    from msfl.policies.keys import encode_public
    from msfl.registry.publish import papers_of
    from msfl.registry.resubmit import Differs, difference

    papers = papers_of(opened, digest)
    if papers.statement is None:
        return
    try:
        signed = Signed.parse(papers.statement, RELEASE_STATEMENT, "release statement")
        before = RELEASE_STATEMENT.load(signed.payload_of_kind(), signed.file)
    except Malformed:
        return
    if not signed.signed_by([Member(person="publisher", key_id=pair.id, public_key=encode_public(pair.public))]):
        return
    found = difference(before, statement)
    named, undone = ", ".join(found.fields), f"the {len(papers.reviews)} reviews of it" if papers.reviews else "it"
    if found.kind is Differs.RELEASE:
        fail(
            f"{statement.ref} was submitted with other {named}: what a version may do does not change. Nothing was "
            "signed; give the release a new version."
        )
    if again:
        return
    if found.kind is Differs.SAME:
        fail(
            f"{statement.ref} is submitted, exactly as it is here, until {before.expires:%Y-%m-%d}. Nothing was "
            f"signed: a new statement replaces {undone}, and sites would wait for new reviews. Is that meant? --again"
        )
    fail(
        f"{statement.ref} was submitted with other {named}. A new statement replaces {undone}, and sites wait for new "
        "reviews: --again, if that is meant; nothing was signed."
    )


def _must_hold(
    trusted: TrustedFederationRoot,
    revoked: Revoked,
    group: Literal["publishers", "reviewers"],
    person: str,
    pair: KeyPair,
) -> None:
    """With another key, or under another name, what is signed would be nobody's word; better said before."""
    members = trusted.document.publishers if group == "publishers" else trusted.document.reviewers
    if (person, pair.id) not in {(m.person, m.key_id) for m in revoked.without(members)}:
        names = ", ".join(sorted({m.person for m in members}))
        fail(f"The federation root has no {person} with this key among its {group} ({names}); nothing was signed.")


# ---------------------------------------------------------------------------------------------------- what is read


def standing_of(opened: Registry, digest: str, root: TrustedFederationRoot, revoked: Revoked) -> Standing:
    from dataclasses import replace

    from msfl.policies.refusals import Code, refuse
    from msfl.policies.release_state import State, release_state
    from msfl.registry.publish import papers_of

    papers = papers_of(opened, digest)
    standing = release_state(papers.statement, papers.reviews, papers.publications, root, now(), revoked)
    if standing.state is State.UNSIGNED:
        what = f"The registry holds no signed statement for {digest}."
        return replace(standing, why=refuse(Code.WRONG_PUBLISHER, what, digest=digest))
    said = standing.statement
    if said is not None and said.digest != digest:
        what = f"The statement attached to {digest} is about {said.digest}."
        return replace(standing, state=State.INVALID, why=refuse(Code.IMAGE_BROKEN, what, digest=digest))
    return standing


def statement_at(opened: Registry, digest: str) -> tuple[bytes, ReleaseStatement]:
    """The envelope attached last, and what it says, read but not verified: for who reviews it, and signs its hash."""
    from msfl.policies.encoding import Malformed
    from msfl.policies.envelope import RELEASE_STATEMENT, Signed
    from msfl.registry.publish import papers_of

    envelope = papers_of(opened, digest).statement
    if envelope is None:
        fail(f"The registry holds no signed statement for {digest}; the publisher makes it with: msfl registry submit")
    try:
        signed = Signed.parse(envelope, RELEASE_STATEMENT, "release statement")
        statement = RELEASE_STATEMENT.load(signed.payload_of_kind(), signed.file)
    except Malformed as error:
        fail(str(error))
    if statement.digest != digest:
        fail(f"The statement attached to {digest} is about another image, {statement.digest}: nothing of it counts")
    return envelope, statement


_WORTH = {
    "approves": "counts",
    "rejects": "stands, until its signer approves this statement",
    "withdrawn": "taken back by a later approval",
    "other_statement": "about an earlier statement; asks for a new review",
    "other_image": "about another image",
    "expired": "expired",
    "not_yet": "not in force yet",
    "key_revoked": "signed with a revoked key",
    "no_reviewer": "does not count: the publisher's own, or not by the reviewer it names",
}


def standing_in_words(ref: str, standing: Standing) -> list[str]:
    ref = standing.statement.ref if standing.statement else ref
    lines = [f"{ref} is {standing.state.value}: {len(standing.approvals)} of {standing.needed} approvals count."]
    if standing.why is not None:
        lines.append(f"  {standing.why.code.value}: {standing.why.message}")
    for one in standing.reviews:
        said = f": {one.review.comment}" if one.review.comment else ""
        when = f"{one.review.issued:%Y-%m-%d %H:%M}"
        lines.append(f"  {one.review.reviewer} {when} {one.review.verdict} ({_WORTH[one.worth.value]}){said}")
    for review in standing.strangers:
        when = f"{review.issued:%Y-%m-%d %H:%M}"
        lines.append(f"  {review.reviewer} {when} {review.verdict} (does not count: signed by nobody of the root)")
    return lines


def standing_as_json(standing: Standing) -> dict[str, Any]:
    return {
        "state": standing.state.value,
        "approvals": list(standing.approvals),
        "needed": standing.needed,
        "why": standing.why.to_json() if standing.why else None,
        "reviews": [
            {**one.review.model_dump(mode="json"), "signers": list(one.signers), "worth": one.worth.value}
            for one in standing.reviews
        ],
        "strangers": [review.model_dump(mode="json") for review in standing.strangers],
    }
