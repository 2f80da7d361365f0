"""A small, complete world of governance: keys from fixed seeds, both roots, one release, one policy, one job.

Everything is signed and trusted by the product's own doors. A story changes one thing and looks at what is refused:

    world = World()
    world.decide(policy=edit(world.policy_yaml, "max: 60", "max: 2"))
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from msfl.policies.decide import Decision, Request, decide
from msfl.policies.documents import (
    Bound,
    DatasetRecord,
    FederationRoot,
    Isolation,
    IssuerKeys,
    JobSpec,
    Member,
    ReleaseResources,
    ReleaseStatement,
    Review,
    SiteRoot,
)
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.envelope import ASSET_POLICY, FEDERATION_ROOT, RELEASE_STATEMENT, REVIEW, SITE_ROOT, Kind, sign
from msfl.policies.identity import User, mint_token, sign_job, verify_token
from msfl.policies.keys import KeyPair, encode_public
from msfl.policies.refusals import Refusal
from msfl.policies.resolve import resolve_config
from msfl.policies.trust import (
    NotTrusted,
    TrustedFederationRoot,
    TrustedPolicy,
    TrustedRelease,
    TrustedSiteRoot,
    trust_federation_root,
    trust_policy,
    trust_release,
    trust_site_root,
)

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(days=365)
DIGEST = "sha256:" + "d" * 64
AUDIENCE = "msfl-test"
ISSUER = "https://login.uni.example"

POLICY_YAML = f"""\
api_version: msfl/v1
kind: AssetPolicy
id: ms-trial-lesion-segmentation
version: 3
purpose: Train and evaluate MS lesion segmentation within study MSFL-01
not_before: 2026-11-01T00:00:00Z
expires: 2027-05-01T00:00:00Z
datasets: [ms-trial]
beneficiaries:
  users: [ada@uni.example]
  organisations: [uni.example]
releases:
  - name: ms-lesion-nnunet
    versions: ["1.0.0"]
    digests: ["{DIGEST}"]
    tasks: [fingerprint, prepare, train, evaluate]
    reviewers: {{minimum: 2}}
config:
  rounds: {{max: 60}}
  local_epochs: {{max: 1}}
  initial_lr: {{min: 0.0001, max: 0.05}}
  deep_supervision: {{enum: [true, false]}}
  strategy: {{enum: [fedavg, fedprox]}}
  profile: {{enum: [full]}}
  seed: {{min: 0}}
splits: {{train: [train, evaluate], test: [evaluate]}}
outputs:
  weights: {{max_mib: 256}}
  local_model: false
  metrics: [dice, sensitivity, precision, loss]
  per_case_metrics: false
privacy:
  min_cases: {{train: 5, metrics: 3}}
  min_sites: 2
  secure_aggregation: optional
  epsilon_total: null
resources: {{gpus: 1, memory_gib: 64, wall_time: 72h}}
isolation: sandbox
proof: required
approval: {{mode: auto, auto_for: [], max_runs: 5, max_rounds: 300}}
"""


def key(name: str) -> KeyPair:
    """The same key for the same name, always."""
    return KeyPair.from_seed(hashlib.sha256(name.encode()).digest())


def member(person: str, key_name: str = "") -> Member:
    pair = key(key_name or person)
    return Member(person=person, key_id=pair.id, public_key=encode_public(pair.public))


def edit(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the text"
    return text.replace(old, new)


def trusted(value: object) -> Any:
    assert not isinstance(value, Refusal), value
    return value


@cache
def _signed(payload: bytes, kind: Kind[Any], signers: tuple[str, ...]) -> bytes:
    return sign(payload, kind, [key(signer) for signer in signers])


@dataclass(frozen=True)
class World:
    """`now` is when everything is looked at. The fields are what a story usually changes."""

    now: datetime = NOW
    policy_yaml: str = POLICY_YAML
    custodians: tuple[str, ...] = ("cleo",)
    policy_signers: tuple[str, ...] = ("cleo",)
    reviewers: tuple[str, ...] = ("rosa", "rui")

    # ------------------------------------------------------------------------------------- trust roots
    @property
    def site_root(self) -> TrustedSiteRoot:
        root = SiteRoot(
            site="site-a", version=1, custodians=tuple(member(p) for p in self.custodians), threshold=1, expires=LATER
        )
        envelope = _signed(encode(root), SITE_ROOT, self.custodians[:1])
        result: TrustedSiteRoot = trusted(trust_site_root(envelope, "site-a", NOW))
        return result

    @property
    def federation_root(self) -> TrustedFederationRoot:
        root = FederationRoot(
            federation="msfl-test",
            version=1,
            keepers=(member("otto"),),
            publishers=(member("paul"),),
            reviewers=(member("rosa"), member("rui"), member("paul", "paul-as-reviewer")),
            issuers=(IssuerKeys(issuer=ISSUER, audience=AUDIENCE, keys=(encode_public(key("issuer").public),)),),
            expires=LATER,
        )
        envelope = _signed(encode(root), FEDERATION_ROOT, ("otto",))
        result: TrustedFederationRoot = trusted(trust_federation_root(envelope, sha256_of(envelope), NOW))
        return result

    # ---------------------------------------------------------------------------------------- release
    @property
    def statement(self) -> ReleaseStatement:
        return ReleaseStatement(
            name="ms-lesion-nnunet",
            version="1.0.0",
            digest=DIGEST,
            commit="0123abc",
            publisher="paul",
            entrypoint=("python", "-m", "msfl.learning.nnunet"),
            environment_sha256="sha256:" + "e" * 64,
            tasks=("fingerprint", "prepare", "train", "evaluate"),
            profiles={
                "full": {"initial_lr": 0.01, "local_epochs": 1, "deep_supervision": True},
                "demo": {"initial_lr": 0.05, "local_epochs": 1, "deep_supervision": False},
            },
            config={
                "initial_lr": Bound(type="number", min=0.0, max=1.0),
                "local_epochs": Bound(type="integer", min=1, max=10),
                "deep_supervision": Bound(type="boolean"),
            },
            outputs={"metrics": ("dice",)},
            resources=ReleaseResources(gpus=0, memory_gib=4),
            issued=NOW,
            expires=LATER,
        )

    def review(self, by: str, *, statement: ReleaseStatement | None = None, **changes: Any) -> bytes:
        about = statement or self.statement
        review = Review(
            digest=about.digest,
            statement_sha256=sha256_of(encode(about)),
            verdict="approve",
            reviewer=by,
            issued=NOW,
            expires=LATER,
        )
        return sign(encode(review.model_copy(update=changes)), REVIEW, [key(by)])

    def release(self, statement: ReleaseStatement | None = None, reviews: list[bytes] | None = None) -> Any:
        """TrustedRelease | Refusal."""
        if statement is None and reviews is None:
            return self._usual_release()
        return self._release(statement or self.statement, reviews)

    @cache  # noqa: B019
    def _usual_release(self) -> Any:
        return self._release(self.statement, None)

    def _release(self, about: ReleaseStatement, reviews: list[bytes] | None) -> Any:
        envelope = _signed(encode(about), RELEASE_STATEMENT, ("paul",))
        given = [self.review(r, statement=about) for r in self.reviewers] if reviews is None else reviews
        return trust_release(envelope, given, self.federation_root, self.now)

    # ----------------------------------------------------------------------------------------- policy
    def policy_envelope(self) -> bytes:
        return _signed(self.policy_yaml.encode(), ASSET_POLICY, self.policy_signers)

    @cache  # noqa: B019  # a world is small, frozen and compared by value
    def trust_policy(self) -> TrustedPolicy | NotTrusted:
        return trust_policy(self.policy_envelope(), self.site_root, self.now)

    @property
    def policy(self) -> TrustedPolicy:
        result: TrustedPolicy = trusted(self.trust_policy())
        return result

    # ---------------------------------------------------------------------------------------- request
    @property
    def dataset(self) -> DatasetRecord:
        return DatasetRecord(
            id="ms-trial",
            site="site-a",
            version="sha256:" + "a" * 64,
            channel_names=("FLAIR", "T1w"),
            labels={"background": 0, "lesion": 1},
            n_train=12,
            n_test=4,
            spacing_mm=(1.0, 1.0, 1.0),
            kind="generated",
        )

    @property
    def job(self) -> JobSpec:
        return JobSpec(
            name="first-run",
            release="ms-lesion-nnunet:1.0.0",
            datasets=("site-a/ms-trial", "site-b/ms-cohort", "site-c/ms-clinic"),
            rounds=50,
            profile="full",
            config={"initial_lr": 0.02},
            baseline="local",
            min_sites=2,
            round_deadline_s=7200,
            seed=7,
            nonce="0123456789abcdef",
        )

    @property
    def token(self) -> str:
        return mint_token(
            key("issuer"), ISSUER, AUDIENCE, "user-1", "ada@uni.example", "uni.example", key("ada").thumbprint, NOW
        )

    @property
    def user(self) -> User:
        return self._user()

    @cache  # noqa: B019
    def _user(self) -> User:
        result: User = trusted(verify_token(self.token, self.federation_root.document.issuers, NOW))
        return result

    @property
    def proof(self) -> str:
        return sign_job(encode(self.job), key("ada"))

    def request(self, **changes: Any) -> Request:
        """`resolved` follows `job` and `release` unless given."""
        job = changes.get("job", self.job)
        release: TrustedRelease = changes.get("release") or trusted(self.release())
        resolved = resolve_config(job, release.statement)
        base = Request(
            site="site-a",
            dataset=self.dataset,
            release=release,
            user=self.user,
            job=job,
            resolved={} if isinstance(resolved, Refusal) else resolved,
            isolation=Isolation.SANDBOX,
            proof_given=True,
            participants=3,
        )
        return replace(base, **changes)

    def decide(self, **changes: Any) -> Decision:
        """One decision under this world's one policy; `changes` are fields of Request."""
        return decide(self.request(**changes), (self.policy,), self.now)
