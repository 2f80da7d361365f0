"""`msfl policy keys|new|check|explain|diff|sign`: what a custodian does at a terminal. It and
`federation` alone read files here.

    keys ──▶ NAME.key.pem (mode 0600) + NAME.public.json         new ──▶ policy.yaml ──(editor)──▶ check, explain
    explain JOB --policy … : every rule, pass or fail             diff OLD NEW: what becomes wider, what narrower
    sign policy.yaml --key NAME.key.pem ──▶ policy.dsse           sign policy.dsse --key … adds one signature

Exit codes: 0 done, 1 the file is not what it should be, 2 wrong usage, 3 (explain) no policy allows the job. Nothing is
overwritten; files are written whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console

from msfl.policies.changes import changes
from msfl.policies.decide import Rehearsal, Unverified, rehearse
from msfl.policies.documents import (
    AssetPolicy,
    DatasetRecord,
    Document,
    Isolation,
    JobSpec,
    Member,
    ReleaseStatement,
)
from msfl.policies.encoding import (
    MAX_BYTES,
    Malformed,
    encode,
    line_of,
    load_json,
    load_yaml,
    read_yaml,
    sha256_of,
)
from msfl.policies.envelope import (
    ASSET_POLICY,
    MAX_ENVELOPE_BYTES,
    RELEASE_STATEMENT,
    Kind,
    Signed,
    add_signature,
    sign,
)
from msfl.policies.identity import User
from msfl.policies.keys import BadKey, KeyPair, encode_public
from msfl.policies.passphrase import secret_for
from msfl.policies.refusals import Code, JsonObject, Refusal
from msfl.policies.resolve import resolve_config
from msfl.policies.templates import policy_template
from msfl.policies.words import in_words, rules_in_words, warnings

D = TypeVar("D", bound=Document)
app = typer.Typer(name="policy", help="Write, check, explain and sign asset policies.", no_args_is_help=True)
_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)

_POLICY = "a policy (YAML with `kind: AssetPolicy`, or its signed envelope)"
_JOB = (
    "a job (the JSON document JobSpec, as `msfl gateway pending --job RUN` prints it); of a file for `msfl job submit` "
    "the sites say it themselves: `msfl job submit FILE --explain`"
)
_MAX_RECORD_BYTES = 64 << 20  # it names every file of the dataset

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
PolicyFile = Annotated[Path, typer.Argument(help="A policy: YAML, or its signed envelope.", show_default=False)]


@app.command()
def keys(
    person: Annotated[str, typer.Argument(help="Whose key: a name or address, as a root will list it.")],
    folder: Annotated[Path, typer.Option(help="Where both files go.")] = Path(),
    passphrase: Annotated[bool, typer.Option(help="Ask for a passphrase that protects the key.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a person's key: a custodian's, and just so a keeper's, a publisher's, a reviewer's. Nobody else makes it.

    The private file stays with its person; the public one goes to whoever writes the root that names them.
    """
    secret = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True).encode() if passphrase else None
    pair = KeyPair.generate()
    try:
        member = Member(person=person, key_id=pair.id, public_key=encode_public(pair.public))
    except ValueError:
        _fail(f"{person!r} is no name for a signer: use lower-case letters, digits and . _ + @ -", 2)
    private, public = folder / f"{person}.key.pem", folder / f"{person}.public.json"
    if public.exists():
        _fail(f"{public} exists already; nothing was written.", 1)
    _write(private, pair.to_pem(secret), mode=0o600)
    _write(public, encode(member) + b"\n")
    said = [
        f"Private key: {private} (mode 0600; it stays with {person})",
        f"Public key:  {public}",
        f"Key id:      {pair.id}",
    ]
    _say(as_json, {"private": str(private), "public": str(public), "key_id": pair.id}, said)


@app.command()
def new(
    release: Annotated[Path | None, typer.Option(help="The release statement (JSON, or its signed envelope).")] = None,
    dataset: Annotated[Path | None, typer.Option(help="The dataset record (JSON).")] = None,
    user: Annotated[list[str] | None, typer.Option(help="Who may use the data; repeat for several.")] = None,
    organisation: Annotated[list[str] | None, typer.Option(help="Of which organisations they must be.")] = None,
    out: Annotated[Path, typer.Option(help="The YAML file to write.")] = Path("policy.yaml"),
    purpose: Annotated[str, typer.Option(help="One line: what the data are used for.")] = "",
    days: Annotated[int, typer.Option(min=1, help="Days in force, from now.")] = 180,
    rounds: Annotated[int, typer.Option(min=1, help="The most rounds of one run.")] = 100,
    max_runs: Annotated[int, typer.Option(min=1, help="The most runs in all.")] = 5,
    max_rounds: Annotated[int, typer.Option(min=1, help="The most rounds in all.")] = 300,
    reviewers: Annotated[int, typer.Option(min=1, help="Reviewers the release must have.")] = 2,
    min_sites: Annotated[int, typer.Option(min=1, help="Fewest training sites of a run, this one included.")] = 2,
    isolation: Annotated[Isolation, typer.Option(help="The least isolation accepted.")] = Isolation.SANDBOX,
    auto: Annotated[bool, typer.Option(help="Start runs without asking the custodian.")] = False,
    local_model: Annotated[bool, typer.Option(help="Let this site's own model leave.")] = False,
    guided: Annotated[
        bool, typer.Option("--guided", help="Ask for what is not given; Enter takes what is shown.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a policy for one release and one dataset, to be read, narrowed and signed."""
    if guided:
        release = release or Path(typer.prompt("Release statement (file)"))
        dataset = dataset or Path(typer.prompt("Dataset record (file)"))
    users, organisations = list(user or ()), list(organisation or ())
    if release is None or dataset is None or not (users or organisations or guided):
        _fail("Give --release, --dataset and at least one --user or --organisation, or let --guided ask.", 2)
    statement, record = _document(release, RELEASE_STATEMENT), _record(dataset)
    if guided:
        for line in _facts(statement, record):
            typer.echo(line)
        users = users or _words(
            typer.prompt("Users, by address or subject (empty: any of the organisations)", default="")
        )
        organisations = organisations or _words(typer.prompt("Organisations (empty: any)", default=""))
        purpose = purpose or typer.prompt("Purpose, in one line", default=f"Use of {record.id} by {statement.name}")
        days = typer.prompt("Days in force", default=days)
        rounds = typer.prompt("Most rounds of one run", default=rounds)
        max_runs = typer.prompt("Most runs in all", default=max_runs)
        max_rounds = typer.prompt("Most rounds in all", default=max(max_rounds, rounds))
        reviewers = typer.prompt("Reviewers the release must have", default=reviewers)
        min_sites = typer.prompt("Fewest training sites of a run", default=min_sites)
        local_model = typer.confirm("May this site's own, unaggregated model leave?", default=local_model)
        auto = not typer.confirm("Do you want to confirm each run?", default=not auto)
    try:
        text = policy_template(
            statement,
            record,
            users,
            datetime.now(UTC),
            purpose=purpose,
            organisations=organisations,
            valid_for=timedelta(days=days),
            rounds_max=rounds,
            reviewers=reviewers,
            min_sites=min_sites,
            isolation=isolation,
            mode="auto" if auto else "confirm",
            local_model=local_model,
            max_runs=max_runs,
            max_rounds=max_rounds,
        )
    except Malformed as error:
        _fail(str(error), 1)
    _write(out, text.encode())
    said = [f"Wrote {out}. Read and narrow it, then: msfl policy check {out} && msfl policy sign {out} --key …"]
    _say(as_json, {"policy": str(out), "sha256": sha256_of(text.encode())}, said)


def _facts(release: ReleaseStatement, dataset: DatasetRecord) -> list[str]:
    """What is at hand, before anybody is asked to decide on it."""
    needs = f"{release.resources.gpus} GPUs, {release.resources.memory_gib} GiB"
    return [
        f"Release {release.ref} by {release.publisher}, image {release.digest[:19]}…; needs {needs}",
        f"  {release.description or 'no description'}",
        f"  tasks: {', '.join(release.tasks)}; profiles: {', '.join(sorted(release.profiles))}",
        f"Dataset {dataset.ref}: {dataset.n_train} training and {dataset.n_test} test cases, {dataset.kind}",
    ]


def _words(typed: str) -> list[str]:
    return typed.replace(",", " ").split()


@app.command()
def check(
    file: PolicyFile,
    release: Annotated[Path | None, typer.Option(help="Hold the bounds against this release statement.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a policy, line by line, and what deserves a second look."""
    statement = None if release is None else _document(release, RELEASE_STATEMENT)
    try:
        policy, payload = _policy(file)
    except Malformed as error:
        problems = [{"line": p.line, "key": p.key, "what": p.what, "allowed": p.allowed} for p in error.problems]
        _say(as_json, {"file": str(file), "valid": False, "problems": problems}, str(error).splitlines())
        raise typer.Exit(1) from None
    _, lines = read_yaml(payload, str(file))
    looks = [(line_of(look.path, lines), look.what) for look in warnings(policy, datetime.now(UTC), statement)]
    facts = {
        "file": str(file),
        "valid": True,
        "sha256": sha256_of(payload),
        "warnings": [{"line": line, "what": what} for line, what in looks],
    }
    _say(as_json, facts, [f"{file}: valid, {sha256_of(payload)}", *(f"{file}:{n}: note: {what}" for n, what in looks)])


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="The policy that is in force: YAML, or its signed envelope.")],
    new: Annotated[Path, typer.Argument(help="The one that would take its place.")],
    as_json: AsJson = False,
) -> None:
    """Say in plain words what a new version newly allows, and what it no longer allows."""
    try:
        (before, _), (after, _) = _policy(old), _policy(new)
    except Malformed as error:
        _fail(str(error), 1)
    found = changes(before, after)
    facts = {
        "old": str(old),
        "new": str(new),
        "changes": [{"way": c.way.value, "field": c.field, "what": c.what} for c in found],
    }
    _say(as_json, facts, [str(c) for c in found] or ["Both allow the same."])


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="A policy (YAML or envelope), or a job (JobSpec).", show_default=False)],
    policy: Annotated[list[Path] | None, typer.Option(help="For a job: the policies; repeat for several.")] = None,
    release: Annotated[Path | None, typer.Option(help="For a job: the release statement.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="For a job: the record of this site's dataset.")] = None,
    user: Annotated[str, typer.Option(help="For a job: who submits it, by address or subject.")] = "",
    organisation: Annotated[str, typer.Option(help="For a job: the user's organisation.")] = "",
    reviewer: Annotated[list[str] | None, typer.Option(help="For a job: who has reviewed the release.")] = None,
    isolation: Annotated[Isolation, typer.Option(help="For a job: what this site has.")] = Isolation.SANDBOX,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="For a job: the user has not signed it.")] = False,
    runs: Annotated[int, typer.Option(min=0, help="For a job: runs spent so far.")] = 0,
    rounds: Annotated[int, typer.Option(min=0, help="For a job: rounds spent so far.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say in plain words what a policy allows; or, for a job, every rule of the given policies with pass or fail.

    A job is the JSON document JobSpec that its user signs: of a run that waits here, what `msfl gateway pending
    --job RUN` prints; of another, the field `spec` of its user's `msfl job show RUN --json`. Nothing is verified here
    and nothing starts: signatures and tokens are the gateway's to check.
    """
    if b'"JobSpec"' not in _read(file, MAX_ENVELOPE_BYTES):
        try:
            if not _calls_itself_a_policy(file):
                _fail(f"{file} is neither {_POLICY} nor {_JOB}.", 1)
            document, payload = _policy(file)
        except Malformed as error:
            _fail(str(error), 1)
        lines = in_words(document)
        _say(as_json, {"file": str(file), "sha256": sha256_of(payload), "words": list(lines)}, lines)
        return
    if not policy or release is None or dataset is None or not user:
        _fail("To explain a job give --policy, --release, --dataset and --user.", 2)
    statement, record = _document(release, RELEASE_STATEMENT), _record(dataset)
    try:
        job = load_json(_read(file, MAX_BYTES), JobSpec, str(file))
        policies = [(path, *_policy(path)) for path in policy]
    except Malformed as error:
        _fail(str(error), 1)
    resolved = resolve_config(job, statement)
    now = datetime.now(UTC)
    asked = Rehearsal(
        site=record.site,
        dataset=record,
        release=Unverified(statement, tuple(sorted(set(reviewer or ())))),
        user=User(user, user, organisation, "", None, now, only_issuer=True),
        job=job,
        # What does not resolve is refused by the first rule, with its reason.
        resolved={} if isinstance(resolved, Refusal) else resolved,
        isolation=isolation,
        proof_given=not unsigned,
        participants=len(job.datasets),
        runs_so_far={p.id: runs for _, p, _ in policies},
        rounds_so_far={p.id: rounds for _, p, _ in policies},
    )
    judged = [(str(path), p, rehearse(p, asked, now)) for path, p, _ in policies]
    passes = any(all(rule.passed for rule in rules) for _, _, rules in judged)
    refused = any(rule.code is Code.EXPLICITLY_REFUSED for _, _, rules in judged for rule in rules)
    said: list[str] = []
    for path, p, rules in judged:
        failed = sum(not rule.passed for rule in rules)
        mode = "; you would be asked to confirm it" if p.approval.mode == "confirm" else ""
        verdict = f"{failed} rules say no" if failed else f"allows the job{mode}"
        said += [f"{path}, {p.id} version {p.version}: {verdict}", *rules_in_words(rules)]
    facts = {
        "job": str(file),
        "allowed": passes and not refused,
        "policies": [
            {"file": path, "id": p.id, "version": p.version, "rules": [rule.to_json() for rule in rules]}
            for path, p, rules in judged
        ],
    }
    _say(as_json, facts, said)
    if not passes or refused:
        raise typer.Exit(3)


@app.command(name="sign")
def sign_(
    file: PolicyFile,
    key: Annotated[Path, typer.Option(help="The custodian's private key (PEM).")],
    out: Annotated[Path | None, typer.Option(help="The envelope to write. Default: FILE with .dsse")] = None,
    passphrase: Annotated[bool, typer.Option(help="Ask for the key's passphrase.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sign exactly these bytes. Given an envelope, add one more custodian's signature to it."""
    secret = secret_for(passphrase, os.environ)
    try:
        pair = KeyPair.from_pem(_read(key, MAX_BYTES), secret)
        policy, payload = _policy(file)
        if _is_envelope(file):
            envelope = add_signature(_read(file, MAX_ENVELOPE_BYTES), ASSET_POLICY, pair)
        else:
            envelope = sign(payload, ASSET_POLICY, [pair])
    except Malformed as error:
        _fail(str(error), 1)
    except BadKey as error:
        _fail(f"{key}: {error}", 1)
    target = out or (file.with_suffix(f".{pair.id[:8]}.dsse") if _is_envelope(file) else file.with_suffix(".dsse"))
    _write(target, envelope)
    facts = {"envelope": str(target), "policy": policy.id, "sha256": sha256_of(payload), "key_id": pair.id}
    _say(as_json, facts, [f"Signed {policy.id} version {policy.version} with key {pair.id[:16]}…: {target}"])


def _policy(file: Path) -> tuple[AssetPolicy, bytes]:
    """The policy and the exact bytes of its YAML. Raises Malformed."""
    data = _read(file, MAX_ENVELOPE_BYTES)
    payload = Signed.parse(data, ASSET_POLICY, str(file)).payload_of_kind() if _is_envelope(file) else data
    return load_yaml(payload, AssetPolicy, str(file)), payload


def _document(file: Path, kind: Kind[D]) -> D:
    """A document, bare or in its envelope, not verified: a template is a proposal; the gateway verifies."""
    try:
        data = _read(file, MAX_ENVELOPE_BYTES)
        if b'"payloadType"' in data[:MAX_BYTES]:
            data = Signed.parse(data, kind, str(file)).payload_of_kind()
        return kind.load(data, str(file))
    except Malformed as error:
        _fail(str(error), 1)


def _record(file: Path) -> DatasetRecord:
    try:
        return load_json(_read(file, _MAX_RECORD_BYTES), DatasetRecord, str(file), max_bytes=_MAX_RECORD_BYTES)
    except Malformed as error:
        _fail(str(error), 1)


def _calls_itself_a_policy(file: Path) -> bool:
    """Raises Malformed for what is no YAML at all."""
    data = _read(file, MAX_ENVELOPE_BYTES)
    if _is_envelope(file):
        return Signed.parse(data, ASSET_POLICY, str(file)).payload_type == ASSET_POLICY.payload_type
    said, _ = read_yaml(data, str(file))
    return isinstance(said, Mapping) and said.get("kind") == "AssetPolicy"


def _is_envelope(file: Path) -> bool:
    """By what is in it: people give files names."""
    data = _read(file, MAX_ENVELOPE_BYTES)
    return data.lstrip()[:1] == b"{" and b'"payloadType"' in data


def _read(file: Path, most: int) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(most + 1)
    except OSError as error:
        _fail(f"{file}: {error.strerror}", 2)


def _write(file: Path, data: bytes, mode: int = 0o644) -> None:
    half = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(half, file)  # unlike a rename, this never replaces a file
    except FileExistsError:
        _fail(f"{file} exists already; nothing was written. Choose another name, or move it away.", 1)
    except OSError as error:
        _fail(f"{file}: {error.strerror}", 2)
    finally:
        half.unlink(missing_ok=True)


def _say(as_json: bool, facts: JsonObject, lines: list[str] | tuple[str, ...]) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for line in lines:
        _out.print(line, markup=False)


def _fail(message: str, code: int) -> NoReturn:
    _err.print(message, markup=False)
    raise typer.Exit(code)
