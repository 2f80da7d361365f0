"""A refusal is data: a code, one sentence that says what, where and why, and the facts behind it.

    document unreadable ─┐
    signature, trust ────┤
    user, proof ─────────┼──▶ Refusal(code, message, fields) ──▶ audit log, then the data scientist
    config ──────────────┤
    policy rules ────────┘

`Code` is the closed vocabulary: nothing else says why a site did not start, and every code has one sentence in
`ADVICE` that says what to do about it. Codes may leave a site; whether the message and the fields do is the site's own
setting. A bug is never a Refusal: it is an exception that nobody catches, but for one place, where a site's decision
itself fails and the answer is no (`ENGINE_ERROR`: `msfl.gateway.judge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]


class Code(StrEnum):
    # Documents and signatures
    MALFORMED_DOCUMENT = "malformed_document"
    WRONG_DOCUMENT_KIND = "wrong_document_kind"
    WRONG_SIGNER = "wrong_signer"
    TOO_FEW_SIGNERS = "too_few_signers"
    ONE_PERSON_TWO_ROLES = "one_person_two_roles"
    ROOT_EXPIRED = "root_expired"
    ROOT_DIFFERS = "root_differs"
    # Versions, revocation, time
    VERSION_ROLLED_BACK = "version_rolled_back"
    VERSION_SKIPPED = "version_skipped"
    TRUST_STALE = "trust_stale"
    CLOCK_SET_BACK = "clock_set_back"
    KEY_REVOKED = "key_revoked"
    RELEASE_REVOKED = "release_revoked"
    POLICY_REVOKED = "policy_revoked"
    SITE_REVOKED = "site_revoked"
    # Releases
    WRONG_PUBLISHER = "wrong_publisher"
    RELEASE_EXPIRED = "release_expired"
    RELEASE_REJECTED = "release_rejected"
    RELEASE_NOT_REVIEWED = "release_not_reviewed"
    TOO_MANY_PAPERS = "too_many_papers"
    MATERIALS_DIFFER = "materials_differ"
    OWN_RELEASE = "own_release"
    # People
    TOKEN_INVALID = "token_invalid"  # noqa: S105
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    TOKEN_WRONG_AUDIENCE = "token_wrong_audience"  # noqa: S105
    TOKEN_UNKNOWN_ISSUER = "token_unknown_issuer"  # noqa: S105
    TOKEN_WRONG_CLIENT = "token_wrong_client"  # noqa: S105
    ISSUER_KEYS_STALE = "issuer_keys_stale"
    ISSUER_KEY_REVOKED = "issuer_key_revoked"
    ADDRESS_NOT_ALLOWED = "address_not_allowed"
    PROOF_REQUIRED = "proof_required"
    PROOF_INVALID = "proof_invalid"
    PROOF_OTHER_KEY = "proof_other_key"
    # The job against the release
    JOB_INCONSISTENT = "job_inconsistent"
    JOB_REPLAYED = "job_replayed"
    PROFILE_UNKNOWN = "profile_unknown"
    CONFIG_KEY_UNKNOWN = "config_key_unknown"
    CONFIG_VALUE_INVALID = "config_value_invalid"
    # An order against the job
    TASK_NOT_IN_JOB = "task_not_in_job"
    ROUND_NOT_IN_JOB = "round_not_in_job"
    # The job against the site's policy, in the order of the rules
    NO_POLICY = "no_policy"
    POLICY_SUPERSEDED = "policy_superseded"
    EXPLICITLY_REFUSED = "explicitly_refused"
    POLICY_NOT_YET_VALID = "policy_not_yet_valid"
    POLICY_EXPIRED = "policy_expired"
    DATASET_NOT_NAMED = "dataset_not_named"
    USER_NOT_NAMED = "user_not_named"
    ORGANISATION_NOT_NAMED = "organisation_not_named"
    RELEASE_NOT_NAMED = "release_not_named"
    VERSION_NOT_NAMED = "version_not_named"
    DIGEST_NOT_NAMED = "digest_not_named"
    TASK_NOT_ALLOWED = "task_not_allowed"
    TOO_FEW_REVIEWERS = "too_few_reviewers"
    CONFIG_KEY_NOT_LISTED = "config_key_not_listed"
    CONFIG_OUT_OF_RANGE = "config_out_of_range"
    SPLIT_NOT_ALLOWED = "split_not_allowed"
    WEIGHTS_MAY_NOT_LEAVE = "weights_may_not_leave"
    TOO_FEW_TRAINING_CASES = "too_few_training_cases"
    TOO_FEW_TEST_CASES = "too_few_test_cases"
    TOO_FEW_SITES = "too_few_sites"
    SECURE_AGGREGATION_UNAVAILABLE = "secure_aggregation_unavailable"
    PRIVACY_BUDGET_UNAVAILABLE = "privacy_budget_unavailable"
    RESOURCES_EXCEEDED = "resources_exceeded"
    ISOLATION_TOO_WEAK = "isolation_too_weak"
    RUN_BUDGET_SPENT = "run_budget_spent"
    ROUND_BUDGET_SPENT = "round_budget_spent"
    # What a site finds out by itself, before or during a run
    DATASET_UNKNOWN = "dataset_unknown"
    DATASET_CHANGED = "dataset_changed"
    DATA_UNUSABLE = "data_unusable"
    CUSTODIAN_REFUSED = "custodian_refused"
    CUSTODIAN_STOPPED = "custodian_stopped"
    NOT_CONFIRMED = "not_confirmed"
    CONFIRMATION_DIFFERS = "confirmation_differs"
    IMAGE_BROKEN = "image_broken"
    IMAGE_NOT_SELF_CONTAINED = "image_not_self_contained"
    RUNTIME_FAILED = "runtime_failed"
    IMAGE_DOES_NOT_FIT = "image_does_not_fit"
    REGISTRY_UNREACHABLE = "registry_unreachable"
    ENVIRONMENT_DIFFERS = "environment_differs"
    PLAN_NOT_ALLOWED = "plan_not_allowed"
    OUTPUT_BLOCKED = "output_blocked"
    OUTPUT_BUDGET_SPENT = "output_budget_spent"
    WORKER_FAILED = "worker_failed"
    ENGINE_ERROR = "engine_error"
    # Staff of a site, at its own page
    LOGIN_REFUSED = "login_refused"
    LOGIN_LOCKED = "login_locked"
    PASSWORD_WEAK = "password_weak"  # noqa: S105
    SESSION_OVER = "session_over"
    REQUEST_FORGED = "request_forged"
    NOT_A_CUSTODIAN = "not_a_custodian"


ADVICE: Mapping[Code, str] = {
    Code.MALFORMED_DOCUMENT: "Correct the named line of the document and sign it again.",
    Code.WRONG_DOCUMENT_KIND: "A signature is valid for one kind of document only; sign the document as what it is.",
    Code.WRONG_SIGNER: "Have the document signed by a person whom the trust root of this site or federation names.",
    Code.TOO_FEW_SIGNERS: "Have further, different people of the trust root sign the same bytes.",
    Code.ONE_PERSON_TWO_ROLES: "Have it signed by a custodian who did not publish or review the release.",
    Code.ROOT_EXPIRED: "Make and sign the next version of the trust root.",
    Code.ROOT_DIFFERS: "Compare the root's hash with the one in the registration token before accepting it.",
    Code.VERSION_ROLLED_BACK: "Count the version up from the newest that was in force here, and sign it again.",
    Code.VERSION_SKIPPED: "A root follows the one before it by exactly one version; take up those in between first.",
    Code.TRUST_STALE: "Ask the federation's timekeeper for a new timestamp: msfl federation timestamp.",
    Code.CLOCK_SET_BACK: "Set this machine's clock right; if it was ahead before: msfl gateway clock.",
    Code.KEY_REVOKED: "Have the document signed with a key that is not revoked.",
    Code.RELEASE_REVOKED: "Publish a corrected release, under a new digest.",
    Code.POLICY_REVOKED: "Ask the custodian for a policy with another id.",
    Code.SITE_REVOKED: "Ask the operator of the federation why the site was revoked, or name other sites.",
    Code.WRONG_PUBLISHER: "Have the release signed by a publisher of the federation root.",
    Code.RELEASE_EXPIRED: "Ask the publisher for a statement with a later expiry.",
    Code.RELEASE_REJECTED: "Submit a corrected release under a new version, or have who rejected it approve this one.",
    Code.RELEASE_NOT_REVIEWED: "Ask further reviewers of the federation root for a signed review.",
    Code.TOO_MANY_PAPERS: "Ask the registry's operator who attached them, or publish the release under a new version.",
    Code.MATERIALS_DIFFER: "Submit the release anew, with the list and the card that belong to it.",
    Code.OWN_RELEASE: "Nobody reviews their own release; ask a reviewer of the federation root.",
    Code.TOKEN_INVALID: "Log in again: msfl login.",
    Code.TOKEN_EXPIRED: "Log in again: msfl login.",
    Code.TOKEN_WRONG_AUDIENCE: "Ask the identity provider for a token made for this federation.",
    Code.TOKEN_UNKNOWN_ISSUER: "Log in with an identity provider that the federation root names.",
    Code.TOKEN_WRONG_CLIENT: "Log in with an application that the federation root names: msfl login.",
    Code.ISSUER_KEYS_STALE: "Have the issuer's stewards sign its present keys: msfl issuer sign.",
    Code.ISSUER_KEY_REVOKED: "Log in again once the identity provider signs with another key: msfl login.",
    Code.ADDRESS_NOT_ALLOWED: "Call from an allowed address, or have the operator add yours: people_from.",
    Code.PROOF_REQUIRED: "Log in with a token bound to a key, so that the SDK can sign the job.",
    Code.PROOF_INVALID: "Submit the job again with the SDK; its signature does not fit its bytes.",
    Code.PROOF_OTHER_KEY: "Log in again: the job was signed with a key that the token is not bound to.",
    Code.JOB_INCONSISTENT: "Submit the job again; release, digest, dataset and config must belong together.",
    Code.JOB_REPLAYED: "Submit a new job; each signed job runs once.",
    Code.PROFILE_UNKNOWN: "Choose one of the profiles that the release offers.",
    Code.CONFIG_KEY_UNKNOWN: "Remove the key, or use a release that knows it.",
    Code.CONFIG_VALUE_INVALID: "Choose a value of the type and range that the release states.",
    Code.TASK_NOT_IN_JOB: "The centre ordered what the signed job does not ask for; ask its operator why.",
    Code.ROUND_NOT_IN_JOB: "The centre ordered more rounds than the job has; for more, run.extend(rounds=…).",
    Code.NO_POLICY: "Ask the site's custodian to sign an asset policy: msfl policy new.",
    Code.POLICY_SUPERSEDED: "Keep one file per policy id at the site, the newest version.",
    Code.EXPLICITLY_REFUSED: "A custodian refuses this user, organisation or image by name; ask at the site.",
    Code.POLICY_NOT_YET_VALID: "Wait for the policy's not_before, or ask the custodian for an earlier one.",
    Code.POLICY_EXPIRED: "Ask the custodian for a new version of the policy.",
    Code.DATASET_NOT_NAMED: "Ask the custodian to name the dataset in a policy.",
    Code.USER_NOT_NAMED: "Ask the custodian to name you under beneficiaries.users.",
    Code.ORGANISATION_NOT_NAMED: "Ask the custodian to name your organisation under beneficiaries.organisations.",
    Code.RELEASE_NOT_NAMED: "Ask the custodian to name the release, or use one that the policy names.",
    Code.VERSION_NOT_NAMED: "Ask the custodian to name this version, or use one that the policy names.",
    Code.DIGEST_NOT_NAMED: "The image is not the one the custodian approved; use the approved digest.",
    Code.TASK_NOT_ALLOWED: "Ask the custodian to allow the task for this release.",
    Code.TOO_FEW_REVIEWERS: "Ask further reviewers to review the release.",
    Code.CONFIG_KEY_NOT_LISTED: "Ask the custodian to list the key with its bounds under config.",
    Code.CONFIG_OUT_OF_RANGE: "Choose a value inside the policy's bounds.",
    Code.SPLIT_NOT_ALLOWED: "Ask the custodian to open the split for this use, or do without this site.",
    Code.WEIGHTS_MAY_NOT_LEAVE: "Ask the custodian to allow outputs.weights, or name the dataset evaluate-only.",
    Code.TOO_FEW_TRAINING_CASES: "The dataset is smaller than the custodian's minimum; do without this site.",
    Code.TOO_FEW_TEST_CASES: "The test split is smaller than the custodian's minimum; do without this site.",
    Code.TOO_FEW_SITES: "Name more sites in the job and raise its min_sites.",
    Code.SECURE_AGGREGATION_UNAVAILABLE: "This version has no secure aggregation; the policy must not require it.",
    Code.PRIVACY_BUDGET_UNAVAILABLE: "This version keeps no privacy budget; set epsilon_total to null.",
    Code.RESOURCES_EXCEEDED: "Ask the custodian for a larger share of the machine, or use a smaller release.",
    Code.ISOLATION_TOO_WEAK: "Install bubblewrap or a container runtime at the site, or lower the policy's isolation.",
    Code.RUN_BUDGET_SPENT: "Ask the custodian for a new version with a higher max_runs.",
    Code.ROUND_BUDGET_SPENT: "Ask for fewer rounds, or the custodian for a new version with a higher max_rounds.",
    Code.DATASET_UNKNOWN: "The site publishes no such dataset; see client.datasets().",
    Code.DATASET_CHANGED: "Publish the dataset again at the site: msfl data publish.",
    Code.DATA_UNUSABLE: "Correct the data at the site and publish it again.",
    Code.CUSTODIAN_REFUSED: "The custodian said no to this run; ask at the site.",
    Code.CUSTODIAN_STOPPED: "The custodian stopped this run; ask at the site.",
    Code.NOT_CONFIRMED: "The policy asks for the custodian's signature on each run: msfl gateway confirm.",
    Code.CONFIRMATION_DIFFERS: "The custodian signed something else than what would run; confirm this run itself.",
    Code.REGISTRY_UNREACHABLE: "See that the registry runs and that this machine may reach it, then start again.",
    Code.IMAGE_BROKEN: "Nothing of it was used. Push the release again, or build and review a corrected one.",
    Code.IMAGE_DOES_NOT_FIT: "Let other runs end, free some of the disk, or raise images_gib in the site's site.json.",
    Code.IMAGE_NOT_SELF_CONTAINED: "Ask the publisher for a release on a base image: msfl registry build --base.",
    Code.RUNTIME_FAILED: "See that the container engine of this site runs: msfl gateway doctor.",
    Code.ENVIRONMENT_DIFFERS: "Install at the site exactly the packages that the release's lock names.",
    Code.PLAN_NOT_ALLOWED: "The plan names something outside the site's allow-list; check the release.",
    Code.OUTPUT_BLOCKED: "The worker tried to send what the release did not declare or the policy does not allow.",
    Code.OUTPUT_BUDGET_SPENT: "This run has sent as much, or as often, as its rounds need; look why it asks for more.",
    Code.WORKER_FAILED: "Ask the site's staff for the worker's log; it does not leave the site.",
    Code.ENGINE_ERROR: "The site could not decide, and so refuses; ask its staff for the gateway's log.",
    Code.LOGIN_REFUSED: "Try again; who looks after the gateway can set a new password: msfl gateway account password.",
    Code.LOGIN_LOCKED: "Wait until then, or have it lifted where the gateway runs: msfl gateway account unlock.",
    Code.PASSWORD_WEAK: "Choose a longer one: four or five words that have nothing to do with each other will do.",
    Code.SESSION_OVER: "Log in again.",
    Code.REQUEST_FORGED: "Nothing was done. Open this site's page yourself, and use its own buttons.",
    Code.NOT_A_CUSTODIAN: "Ask a custodian of this site; who they are, the site root says.",
}


@dataclass(frozen=True)
class Refusal:
    """`message` says what was refused, where, why and what to do; `fields` holds the facts as strings."""

    code: Code
    message: str
    fields: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        return {"code": self.code.value, "message": self.message, "fields": dict(self.fields)}

    @classmethod
    def from_json(cls, value: JsonObject) -> Refusal:
        """Raises ValueError for anything that `to_json` does not make."""
        if set(value) != {"code", "message", "fields"} or not isinstance(value["message"], str):
            raise ValueError("not a refusal")
        fields = value["fields"]
        if not isinstance(fields, dict) or not all(isinstance(v, str) for v in fields.values()):
            raise ValueError("a refusal's fields are strings")
        return cls(Code(value["code"]), value["message"], dict(fields))


def refuse(code: Code, what: str, **fields: str) -> Refusal:
    """A refusal whose message ends with the advice that belongs to its code."""
    return Refusal(code, f"{what} {ADVICE[code]}", fields)


class CannotProceed(Exception):
    """An error of use or of the surroundings, not a bug: its message tells people what happened, where, why, and what
    to do. The command line prints it as one line and ends with exit code 1."""


class Refused(Exception):
    """A refusal on its way up through code that returns something else, to whoever reports it. Data, not a bug."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code.value}: {refusal.message}")
        self.refusal = refusal
