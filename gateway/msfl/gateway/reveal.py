"""What a site lets others know of its decision. Pure; the site's own setting, `reveal` in its `site.json`.

    verdict           reveal     what leaves
    allow, confirm    any        the policy's id and hash, the isolation in force
    refuse            reason     the same, every rule with pass or fail, the refusal with its reason; but of a policy
                                 that is not trusted only why not: not what its file is called, or holds
    refuse            code       the refusal's code
    refuse            nothing    that the site refuses

A custodian who says no to a run is a refusal like any other. The audit log holds all of it, whatever is revealed.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any, TypeAlias

from msfl.policies.decide import POLICY_TRUSTED, Decision, RuleOutcome
from msfl.policies.refusals import Code, refuse
from msfl.runtime.interface import Protections

JsonObject: TypeAlias = dict[str, Any]


class Reveal(StrEnum):
    REASON = "reason"
    CODE = "code"
    NOTHING = "nothing"


def revealed(decision: Decision, reveal: Reveal, protections: Protections, verdict: str) -> JsonObject:
    """`verdict` is what is answered; with a custodian's no it differs from the decision's own."""
    shown: JsonObject = {
        "policy_id": decision.policy_id,
        "policy_sha256": decision.policy_sha256,
        "isolation": {
            "level": protections.isolation.value,
            "detail": list(protections.detail),
            "in_force": sorted(protections.in_force),
        },
    }
    if verdict != "refuse":
        return shown
    refusal = decision.refusal or refuse(Code.CUSTODIAN_REFUSED, "The custodian refused.")
    match reveal:
        case Reveal.REASON:
            return {**_nameless(replace(decision, refusal=refusal)).to_json(), **shown, "verdict": verdict}
        case Reveal.CODE:
            return {"refusal": {"code": refusal.code.value, "message": "", "fields": {}}}
        case Reveal.NOTHING:
            return {}


def _nameless(decision: Decision) -> Decision:
    """Without the words on policies that are not trusted, which name their files and quote them."""
    told = {rule.detail for rule in decision.rules if rule.rule == POLICY_TRUSTED}
    rules = tuple(_untold(rule) if rule.rule == POLICY_TRUSTED else rule for rule in decision.rules)
    refusal = decision.refusal
    if refusal is not None and refusal.message in told:
        refusal = refuse(refusal.code, "A policy at the site does not count.")
    return replace(decision, rules=rules, refusal=refusal)


def _untold(rule: RuleOutcome) -> RuleOutcome:
    return rule._replace(detail="a policy at the site")
