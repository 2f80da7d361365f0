"""Every document of the governance chain, as one strict and frozen schema each.

    made by            document            signed by                    says
    site staff         SiteRoot            its custodians               who may sign policies at this site
    operator           FederationRoot      its keepers                  who publishes, who reviews, who issues tokens
    steward            IssuerKeySet        stewards of the issuer       an identity provider's keys, for some weeks
    operator           RevocationList      its keepers                  what must not be relied on any more
    operator           Timestamp           its timekeepers              which root and which list are the newest, today
    ML engineer        ReleaseStatement    a publisher                  what an image is, does, accepts and sends
    reviewer           Review              the reviewer                 approve or reject of exactly one statement
    ML engineer        Publication         the statement's publisher    that the reviewed release is for use now
    custodian          AssetPolicy         threshold of custodians      what may run on which data, for whom
    data scientist     JobSpec             the key bound to the token   the request
    site staff         DatasetRecord       nobody; it stays at the site what the data are
    custodian          RunConfirmation     threshold of custodians      yes to exactly one run, where a policy asks
    gateway, centre    AuditCheckpoint     the log's own key            how its audit log stood at one moment

Unknown keys are refused, nothing is coerced (a bool is no integer), numbers are finite, times are whole seconds in UTC
(`2026-11-01T00:00:00Z`), names are plain ASCII so that look-alikes cannot exist. A document that validates is not yet
trusted: see `trust`. `Isolation` is ordered: none < sandbox < container.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import total_ordering
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)

from msfl.policies.jwk import key_id_of, public_key, thumbprint_of
from msfl.policies.keys import BadKey, decode_public, key_id, thumbprint

API_VERSION = "msfl/v1"
KEY_SET_LIFE = timedelta(days=35)
MAX_TIMESTAMP_LIFE = timedelta(days=7)
_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")


def parse_utc(value: object) -> datetime:
    """`2026-11-01T00:00:00Z`, or a datetime that already is in UTC. Raises ValueError."""
    if isinstance(value, datetime) and value.utcoffset() is not None and not value.utcoffset():
        return value.astimezone(UTC).replace(microsecond=0)
    if isinstance(value, str) and _UTC.match(value):
        return datetime.fromisoformat(value).astimezone(UTC)
    raise ValueError(f"{value!r} is not a time of the form 2026-11-01T00:00:00Z")


def format_utc(value: datetime) -> str:
    return value.astimezone(UTC).isoformat()[:19] + "Z"


UtcTime = Annotated[datetime, BeforeValidator(parse_utc), PlainSerializer(format_utc, return_type=str)]
_NAME = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
_VERSION = r"[0-9]+\.[0-9]+\.[0-9]+(?:-[0-9a-z.-]+)?"
Slug = Annotated[str, StringConstraints(pattern=rf"^{_NAME}$", max_length=64)]
DatasetRef = Annotated[str, StringConstraints(pattern=rf"^{_NAME}/{_NAME}$", max_length=129)]
ReleaseRef = Annotated[str, StringConstraints(pattern=rf"^{_NAME}:{_VERSION}$", max_length=129)]
Version = Annotated[str, StringConstraints(pattern=rf"^{_VERSION}$", max_length=64)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Person = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:[._+@-][a-z0-9]+)*$", max_length=128)]
UserName = Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=512)]
Domain = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:[.-][a-z0-9]+)*$", max_length=128)]
ConfigKey = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,6}[smhd]$")]
Text = Annotated[str, StringConstraints(max_length=2000)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Task: TypeAlias = Literal["fingerprint", "prepare", "train", "evaluate"]
Scalar: TypeAlias = bool | int | float | str
ConfigValue: TypeAlias = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | None


def seconds(duration: str) -> int:
    """`90s`, `30m`, `72h`, `3d` in seconds."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]


@total_ordering
class Isolation(Enum):
    """What stands between reviewed code and the host; a larger one protects more."""

    NONE = "none"
    SANDBOX = "sandbox"
    CONTAINER = "container"

    def __lt__(self, other: Isolation) -> bool:
        return _STRENGTH[self.value] < _STRENGTH[other.value]


_STRENGTH = {level.value: strength for strength, level in enumerate(Isolation)}


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------- who may sign what


class Member(Document):
    """A person and one of their keys. One person may have several keys; they count once."""

    person: Person
    key_id: str
    public_key: str  # canonical base64 of the raw 32 bytes

    @model_validator(mode="after")
    def _the_id_is_the_keys_own(self) -> Self:
        try:
            derived = key_id(decode_public(self.public_key))
        except BadKey as error:
            raise ValueError(f"{self.person}: {error}") from error
        if derived != self.key_id:
            raise ValueError(f"the key of {self.person} has the id {derived}, not {self.key_id}")
        return self


def _refuse_shared_keys(*groups: tuple[Member, ...]) -> None:
    seen: dict[str, str] = {}
    for member in (m for group in groups for m in group):
        if member.public_key in seen:
            raise ValueError(f"{member.person} and {seen[member.public_key]} are listed with the same key")
        seen[member.public_key] = member.person


def _refuse_unreachable(threshold: int, members: tuple[Member, ...]) -> None:
    people = len({m.person for m in members})
    if threshold > people:
        raise ValueError(f"a threshold of {threshold} cannot be reached by {people} different people")


class SiteRoot(Document):
    """Who may sign policies at this site. Made at the site; the centre has no standing in it."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["SiteRoot"] = "SiteRoot"
    site: Slug
    version: Positive
    custodians: tuple[Member, ...] = Field(min_length=1)
    threshold: Positive = 1
    expires: UtcTime

    @model_validator(mode="after")
    def _keys_and_threshold(self) -> Self:
        _refuse_shared_keys(self.custodians)
        _refuse_unreachable(self.threshold, self.custodians)
        return self


class Jwk(Document):
    """A provider's public key, good for one algorithm only (`jwk`). `crv`, `x`, `y`, `n`, `e` as its kind has them."""

    kty: Literal["OKP", "EC", "RSA"]
    alg: Literal["EdDSA", "ES256", "RS256", "PS256"]
    crv: str | None = None
    x: str | None = None
    y: str | None = None
    n: Annotated[str, StringConstraints(max_length=1400)] | None = None
    e: str | None = None

    @model_validator(mode="after")
    def _a_key(self) -> Self:
        public_key(self.model_dump())
        return self

    @property
    def thumbprint(self) -> str:
        return thumbprint_of(self.model_dump())

    @property
    def key_id(self) -> str:
        """By which a revocation list names it."""
        return key_id_of(public_key(self.model_dump()))


class IssuerKeys(Document):
    """An identity provider: its `iss`, the `aud` meant for this federation, and where its keys come from: one of

        keys      Ed25519, base64: the embedded issuer, for one machine only
        jwks      the provider's own, pinned here; they change with the next version of this root
        stewards  people who sign the provider's keys as an IssuerKeySet each time it changes them, `steward_threshold`
                  of them; for providers that change keys more often than a root is signed

    `clients` are the applications (`client_id`, `azp`) whose tokens count. `organisation_claim` names the claim that
    policies compare with `organisations`.
    """

    issuer: Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=512)]
    audience: Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=512)]
    keys: tuple[str, ...] = ()
    jwks: tuple[Jwk, ...] = ()
    stewards: tuple[Member, ...] = ()
    steward_threshold: Positive = 1
    clients: tuple[Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=256)], ...] = ()
    organisation_claim: Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=256)] = "organisation"

    @model_validator(mode="after")
    def _keys_are_keys(self) -> Self:
        if sum(bool(source) for source in (self.keys, self.jwks, self.stewards)) != 1:
            raise ValueError(f"issuer {self.issuer}: give exactly one of keys, jwks and stewards")
        if not self.keys and not self.clients:
            raise ValueError(f"issuer {self.issuer}: name the clients whose tokens count")
        if self.stewards:
            _refuse_shared_keys(self.stewards)
            _refuse_unreachable(self.steward_threshold, self.stewards)
        for key in self.keys:
            try:
                key_id(decode_public(key))
            except BadKey as error:
                raise ValueError(f"issuer {self.issuer}: {error}") from error
        return self

    @property
    def thumbprints(self) -> tuple[str, ...]:
        """Of every key pinned here."""
        return (*(thumbprint(decode_public(key)) for key in self.keys), *(jwk.thumbprint for jwk in self.jwks))


class IssuerKeySet(Document):
    """The keys with which one identity provider signs now, as its stewards have read them at the provider itself."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["IssuerKeySet"] = "IssuerKeySet"
    federation: Slug
    issuer: Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=512)]
    version: Positive
    jwks: tuple[Jwk, ...] = Field(min_length=1, max_length=16)
    issued: UtcTime
    expires: UtcTime

    @model_validator(mode="after")
    def _short_lived(self) -> Self:
        if not self.issued < self.expires <= self.issued + KEY_SET_LIFE:
            raise ValueError(f"expires is not within {KEY_SET_LIFE.days} days after issued")
        return self


class FederationRoot(Document):
    """Publishers, reviewers and issuers of one federation. `keepers` sign it; one key serves one role only.

    Any one of the `timekeepers` signs timestamps: their key may lie on a machine that is on the line, because it can
    say nothing but what is the newest. Without timekeepers the keepers sign timestamps too, by their threshold.
    """

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["FederationRoot"] = "FederationRoot"
    federation: Slug
    version: Positive
    keepers: tuple[Member, ...] = Field(min_length=1)
    threshold: Positive = 1
    timekeepers: tuple[Member, ...] = ()
    publishers: tuple[Member, ...] = Field(min_length=1)
    reviewers: tuple[Member, ...] = Field(min_length=1)
    reviews_needed: Positive = 1
    issuers: tuple[IssuerKeys, ...] = Field(min_length=1)
    expires: UtcTime

    @model_validator(mode="after")
    def _keys_and_thresholds(self) -> Self:
        _refuse_shared_keys(self.keepers, self.publishers, self.reviewers, *(i.stewards for i in self.issuers))
        _refuse_shared_keys(self.keepers, self.timekeepers, self.publishers, self.reviewers)
        _refuse_unreachable(self.threshold, self.keepers)
        _refuse_unreachable(self.reviews_needed, self.reviewers)
        if len({issuer.issuer for issuer in self.issuers}) != len(self.issuers):
            raise ValueError("an issuer is listed twice")
        keys = [key for issuer in self.issuers for key in issuer.thumbprints]
        if len(set(keys)) != len(keys):
            raise ValueError("an issuer's key is listed twice")
        return self


class RevocationList(Document):
    """What must not be relied on any more: keys, image digests, policies (`site/policy`), sites.

    A revocation is for good, so a list never expires and no site forgets what an earlier one named. Whether it is the
    newest is what the `Timestamp` says.
    """

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["RevocationList"] = "RevocationList"
    federation: Slug
    version: Positive
    keys: tuple[KeyId, ...] = ()
    releases: tuple[Digest, ...] = ()
    policies: tuple[DatasetRef, ...] = ()
    sites: tuple[Slug, ...] = ()
    issued: UtcTime


class Named(Document):
    """A document by its version and the hash of its payload's exact bytes."""

    version: Positive
    sha256: Digest


class Timestamp(Document):
    """Which federation root and which revocation list are the newest. Lives for days at most: once it has expired, a
    site that hears nothing newer cannot know, and begins no run."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["Timestamp"] = "Timestamp"
    federation: Slug
    version: Positive
    root: Named
    revocations: Named
    issued: UtcTime
    expires: UtcTime

    @model_validator(mode="after")
    def _short_lived(self) -> Self:
        if not timedelta(0) < self.expires - self.issued <= MAX_TIMESTAMP_LIFE:
            raise ValueError(f"a timestamp lives at most {MAX_TIMESTAMP_LIFE.days} days from issued to expires")
        return self


# ------------------------------------------------------------------------------------------------ releases


class Limits(Document):
    """What a config value may be. Every constraint that is given must hold; `min` and `max` hold per list element."""

    min: int | float | None = None
    max: int | float | None = None
    enum: tuple[Scalar, ...] | None = None
    const: Scalar | tuple[int | float | str, ...] | None = None
    nullable: bool = False

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.enum is not None and not self.enum:
            raise ValueError("an empty enum allows nothing")
        return self


class Bound(Limits):
    """One row of a release's closed config table."""

    type: Literal["integer", "number", "boolean", "string", "integers", "numbers", "strings"]
    description: Text = ""


class ReleaseResources(Document):
    """What the release needs to run at a site."""

    gpus: Count = 0
    memory_gib: Annotated[float, Field(gt=0)] | Positive = 1


class BaseName(Document):
    """The image below a self-contained release. `name` is how the publisher called it, if at all."""

    name: Annotated[str, StringConstraints(pattern=r"^[!-~]*$", max_length=256)] = ""
    digest: Digest


class Materials(Document):
    """What lies beside the image for its readers, bound by the hash of its bytes: the list of everything in it
    (CycloneDX), and the model card. `base` is given where the image is self-contained."""

    sbom: Digest
    model_card: Digest
    base: BaseName | None = None


class ReleaseStatement(Document):
    """What a publisher says about exactly one image. `digest` is the OCI manifest's.

    Version msfl/v2 names its materials, msfl/v1 has none; a site that is older than msfl/v2 refuses it as malformed.
    """

    api_version: Literal["msfl/v1", "msfl/v2"] = "msfl/v1"
    kind: Literal["ReleaseStatement"] = "ReleaseStatement"
    name: Slug
    version: Version
    digest: Digest
    commit: Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{7,64}|unknown)$")]
    publisher: Person
    entrypoint: tuple[str, ...] = Field(min_length=1)
    environment_sha256: Digest
    tasks: tuple[Task, ...] = Field(min_length=1)
    profiles: Mapping[Slug, Mapping[ConfigKey, ConfigValue]] = Field(min_length=1)
    config: Mapping[ConfigKey, Bound]
    outputs: Mapping[str, Any]
    resources: ReleaseResources = ReleaseResources()
    description: Text = ""
    materials: Materials | None = Field(default=None, exclude_if=lambda materials: materials is None)
    issued: UtcTime
    expires: UtcTime

    @model_validator(mode="after")
    def _materials_from_version_2_on(self) -> Self:
        if (self.materials is None) is (self.api_version == "msfl/v2"):
            raise ValueError("a statement of msfl/v2 names its materials, one of msfl/v1 has none")
        return self

    @property
    def ref(self) -> str:
        return f"{self.name}:{self.version}"


class Publication(Document):
    """The publisher's word that a release, reviewed as its statement stands, is for use from now on."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["Publication"] = "Publication"
    digest: Digest
    statement_sha256: Digest
    publisher: Person
    issued: UtcTime


class Review(Document):
    """One reviewer's word on one statement: the digest and the hash of the statement's exact bytes."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["Review"] = "Review"
    digest: Digest
    statement_sha256: Digest
    verdict: Literal["approve", "reject"]
    comment: Text = ""
    reviewer: Person
    issued: UtcTime
    expires: UtcTime


# -------------------------------------------------------------------------------------------- the site's word


class Beneficiaries(Document):
    """Both lists given: both must hold. A list that is empty or absent does not restrict; one must be given."""

    users: tuple[UserName, ...] = ()
    organisations: tuple[Domain, ...] = ()

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.users and not self.organisations:
            raise ValueError("name at least one user or one organisation")
        return self


class RefusedByName(Document):
    """Who and what is refused, whatever this or another policy allows: for this policy's datasets, as long as the
    policy lies at the site. One match in any list is enough."""

    users: tuple[UserName, ...] = ()
    organisations: tuple[Domain, ...] = ()
    digests: tuple[Digest, ...] = ()


class ReviewersNeeded(Document):
    minimum: Positive


class AllowedRelease(Document):
    name: Slug
    versions: tuple[Version, ...] = Field(min_length=1)
    digests: tuple[Digest, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    reviewers: ReviewersNeeded


class PolicyLimits(Limits):
    """Bounds of one config key. A key listed without any bound is a mistake, not a blank cheque."""

    @model_validator(mode="after")
    def _something_is_bounded(self) -> Self:
        if self.min is None and self.max is None and self.enum is None and self.const is None:
            raise ValueError("give min, max, enum or const")
        return self


class Splits(Document):
    """What each split may be used for; the test split is never trained on."""

    train: tuple[Literal["train", "evaluate"], ...] = ()
    test: tuple[Literal["evaluate"], ...] = ()


class WeightsOut(Document):
    max_mib: Positive


class Outputs(Document):
    """What may leave. `weights` absent: no weights leave."""

    weights: WeightsOut | None = None
    local_model: bool = False
    metrics: tuple[Slug, ...] = ()
    per_case_metrics: bool = False


class MinCases(Document):
    train: Positive
    metrics: Positive


class Privacy(Document):
    min_cases: MinCases
    min_sites: Positive
    secure_aggregation: Literal["required", "optional", "forbidden"] = "optional"
    epsilon_total: int | float | None = None


class Resources(Document):
    """The most that a run may take at this site."""

    gpus: Count
    memory_gib: Positive
    wall_time: Duration


class Approval(Document):
    """`confirm`: the custodian confirms each run, but for the users in `auto_for`. Budgets count per policy id."""

    mode: Literal["auto", "confirm"]
    auto_for: tuple[UserName, ...] = ()
    max_runs: Positive
    max_rounds: Positive


class AssetPolicy(Document):
    """What a custodian allows. Lists inside one policy combine with AND; a job needs one policy that allows it all and
    none that refuses it by name."""

    api_version: Literal["msfl/v1"]
    kind: Literal["AssetPolicy"]
    id: Slug
    version: Positive
    purpose: Line
    not_before: UtcTime
    expires: UtcTime
    datasets: tuple[Slug, ...] = Field(min_length=1)
    beneficiaries: Beneficiaries
    refuse: RefusedByName = RefusedByName()
    releases: tuple[AllowedRelease, ...] = Field(min_length=1)
    config: Mapping[ConfigKey, PolicyLimits]
    splits: Splits
    outputs: Outputs
    privacy: Privacy
    resources: Resources
    isolation: Annotated[Isolation, Field(strict=False)] = Isolation.CONTAINER
    proof: Literal["required", "optional"] = "required"
    approval: Approval

    @model_validator(mode="after")
    def _a_time_in_force(self) -> Self:
        if self.expires <= self.not_before:
            raise ValueError("expires is not after not_before")
        return self


# ------------------------------------------------------------------------------------------- data and request


class DatasetRecord(Document):
    """What a site knows of one published dataset. `files` maps a path below the data folder to its hash and stays
    at the site; `channel_names` are in channel order; `spacing_mm` is the median over cases, in array axis order.
    `test_set` is the hash of the frozen test set's case names; `quality` counts cases by verdict, those that were left
    out included; `overrules` is the head of the chained log of verdicts that people overruled, where there are any. All
    are empty for a dataset that was made elsewhere."""

    id: Slug
    site: Slug
    version: Digest
    channel_names: tuple[Line, ...] = Field(min_length=1)
    labels: Mapping[str, Count]
    n_train: Count
    n_test: Count
    spacing_mm: tuple[float, ...]
    files: Mapping[str, Digest] = Field(default_factory=dict)
    kind: Literal["generated", "user"]
    description: Text = ""
    test_set: Digest | None = None
    quality: Mapping[Slug, Count] = Field(default_factory=dict)
    overrules: Digest | None = None

    @property
    def ref(self) -> str:
        return f"{self.site}/{self.id}"


class Retention(Document):
    """Which models the centre keeps, sealed: those of the `last` rounds, of the `best`, each `every`-th (0: none)."""

    last: Positive = 2
    best: Literal[0, 1] = 1
    every: Count = 0


class EarlyStopping(Document):
    """Training ends when the validation Dice has not grown by more than `min_delta` for `patience` rounds."""

    patience: Positive
    min_delta: float = Field(default=0.0, ge=0.0)


class OnDivergence(Document):
    """What is done when a site's training loss has risen in each of the last `rounds` rounds."""

    rounds: Positive = 3
    action: Literal["flag", "pause"] = "flag"


class StartFrom(Document):
    """The model that training starts from: of a round of an earlier run; without a round, its best."""

    run: str = Field(min_length=1, max_length=128)
    round: Positive | None = None


class JobSpec(Document):
    """The request. `evaluate_only` names those of `datasets` that are not trained on. One dataset per site.

    `min_sites` counts *training* sites: the run neither starts nor closes a round with fewer.
    """

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["JobSpec"] = "JobSpec"
    name: Slug
    release: ReleaseRef
    digest: Digest | None = None
    datasets: tuple[DatasetRef, ...] = Field(min_length=1)
    evaluate_only: tuple[DatasetRef, ...] = ()
    rounds: Positive
    profile: Slug
    config: Mapping[ConfigKey, ConfigValue] = Field(default_factory=dict)
    strategy: Slug = "fedavg"
    personalise: None = None
    baseline: Literal["local"] | None = None
    min_sites: Positive
    start: Literal["all", "quorum"] = "all"
    round_deadline_s: Positive
    keep: Literal["best", "last", "all"] = "best"
    on_dropout: Literal["continue", "wait", "abort"] = "continue"
    retain: Retention = Retention()
    early_stopping: EarlyStopping | None = None
    on_divergence: OnDivergence = OnDivergence()
    start_from: StartFrom | None = None
    seed: Seed
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{16,128}$")]

    @model_validator(mode="after")
    def _datasets_make_sense(self) -> Self:
        sites = [ref.split("/")[0] for ref in self.datasets]
        if len(set(sites)) != len(sites):
            raise ValueError("a job names one dataset per site")
        if unknown := set(self.evaluate_only) - set(self.datasets):
            raise ValueError(f"evaluate_only names {', '.join(sorted(unknown))}, which is not under datasets")
        if self.min_sites > (training := len(self.datasets) - len(set(self.evaluate_only))):
            raise ValueError(f"min_sites is {self.min_sites}, but the job trains at {training} sites")
        return self

    def trains_on(self, ref: str) -> bool:
        """`ref` is `site/dataset`."""
        return ref in self.datasets and ref not in self.evaluate_only

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(ref.split("/")[0] for ref in self.datasets)


class RunConfirmation(Document):
    """A custodian's yes to one run at this site. It says in full what was read before signing: a run that differs in
    any of it is not confirmed. `config` is the resolved one, which the worker gets; `leaves` is in plain words;
    `datasets` and what follows are the job's: with whom, from how few sites on, and from which model."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["RunConfirmation"] = "RunConfirmation"
    site: Slug
    run: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,128}$")]
    generation: Positive
    user: UserName
    dataset: DatasetRef
    release: ReleaseRef
    digest: Digest
    statement_sha256: Digest
    publisher: Person
    reviewers: tuple[Person, ...]
    policy: Slug
    policy_sha256: Digest
    job_sha256: Digest
    datasets: tuple[DatasetRef, ...]
    evaluate_only: tuple[DatasetRef, ...]
    min_sites: Positive
    start: Literal["all", "quorum"]
    baseline: Literal["local"] | None
    start_from: StartFrom | None
    config: Mapping[ConfigKey, ConfigValue]
    leaves: tuple[Line, ...]
    issued: UtcTime


# ------------------------------------------------------------------------------------------------ audit


LogName = Annotated[str, StringConstraints(pattern=rf"^(?:site|centre|keyring):{_NAME}$", max_length=72)]


class AuditCheckpoint(Document):
    """The first `size` entries of `log` have this Merkle root; `head` is the hash of the last of them."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["AuditCheckpoint"] = "AuditCheckpoint"
    log: LogName
    size: Count
    root: Digest
    head: Digest
    at: UtcTime
