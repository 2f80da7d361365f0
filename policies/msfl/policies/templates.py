"""A first asset policy for a custodian to read, narrow and sign: YAML with a comment beside every choice.

The text names exactly one release by version and digest, one dataset and the given users, lists *every* key of the
resolved config with the release's own bounds (a config table is a closed world: a key that is not listed is refused),
and gives each remaining field a cautious value. It is plain text: what the custodian edits is what is signed, byte by
byte. Reading it back gives an `AssetPolicy`; `policy_template` checks that before it returns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

from msfl.policies.documents import AssetPolicy, Bound, DatasetRecord, Isolation, Limits, ReleaseStatement, format_utc
from msfl.policies.encoding import load_yaml
from msfl.policies.resolve import config_bounds


def policy_template(
    release: ReleaseStatement,
    dataset: DatasetRecord,
    users: Iterable[str],
    now: datetime,
    *,
    policy_id: str = "",
    version: int = 1,
    purpose: str = "",
    organisations: Iterable[str] = (),
    valid_for: timedelta = timedelta(days=180),
    profiles: Iterable[str] = (),
    strategies: Iterable[str] = ("fedavg",),
    rounds_max: int = 100,
    reviewers: int = 1,
    metrics: Iterable[str] = ("dice", "sensitivity", "precision", "loss"),
    weights_max_mib: int = 256,
    local_model: bool = False,
    min_cases_train: int = 5,
    min_cases_metrics: int = 3,
    min_sites: int = 2,
    gpus: int | None = None,
    memory_gib: int = 16,
    wall_time: str = "72h",
    isolation: Isolation = Isolation.SANDBOX,
    proof: Literal["required", "optional"] = "required",
    mode: Literal["auto", "confirm"] = "confirm",
    auto_for: Iterable[str] = (),
    max_runs: int = 5,
    max_rounds: int = 300,
) -> str:
    """`profiles` empty: all that the release has. Raises Malformed when a choice does not fit the schema."""
    config = _config(release, tuple(profiles), tuple(strategies), rounds_max)
    needed_gpus = release.resources.gpus if gpus is None else gpus
    text = f"""\
# What may run on {dataset.ref}. Read every line; what you sign is exactly this text.
api_version: msfl/v1
kind: AssetPolicy
id: {policy_id or f"{dataset.id}-{release.name}"}
version: {version}                      # only grows
purpose: {_q(purpose or f"Use of {dataset.id} by {release.name}")}
not_before: {format_utc(now)}
expires: {format_utc(now + valid_for)}   # mandatory; after it nothing runs

datasets: [{dataset.id}]
beneficiaries:                  # both lists given: a user must be on both
  users: {_list(users)}
  organisations: {_list(organisations)}

releases:
  - name: {release.name}
    versions: [{_q(release.version)}]
    digests: [{_q(release.digest)}]   # the image itself; a tag would not do
    tasks: {_plain(release.tasks)}
    reviewers: {{minimum: {reviewers}}}        # different people, none of them the publisher

config:                         # closed world: a key that is not listed is refused
{config}
splits:                         # the test split is never trained on
  train: {"[train, evaluate]" if "train" in release.tasks else "[]"}
  test: [evaluate]

outputs:                        # nothing else leaves
  weights: {{max_mib: {weights_max_mib}}}
  local_model: {_word(local_model)}          # may this site's own, unaggregated model leave?
  metrics: {_list(metrics)}
  per_case_metrics: false       # distributions leave as histograms

privacy:
  min_cases: {{train: {min_cases_train}, metrics: {min_cases_metrics}}}
  min_sites: {min_sites}
  secure_aggregation: optional  # required, optional, forbidden
  epsilon_total: null

resources: {{gpus: {needed_gpus}, memory_gib: {memory_gib}, wall_time: {wall_time}}}
isolation: {isolation.value}            # container, sandbox or none: the least this site accepts
proof: {proof}                 # must the job be signed with a key bound to the user's token?
approval: {{mode: {mode}, auto_for: {_list(auto_for)}, max_runs: {max_runs}, max_rounds: {max_rounds}}}
"""
    load_yaml(text.encode(), AssetPolicy, "policy template")
    return text


def _config(release: ReleaseStatement, profiles: tuple[str, ...], strategies: tuple[str, ...], rounds_max: int) -> str:
    lines = []
    for key, bound in config_bounds(release).items():
        limits = _limits(key, bound, release, profiles, strategies, rounds_max)
        comment = f"   # {bound.description.splitlines()[0]}" if bound.description else ""
        lines.append(f"  {key}: {limits}{comment}\n")
    return "".join(lines)


def _limits(
    key: str,
    bound: Bound,
    release: ReleaseStatement,
    profiles: tuple[str, ...],
    strategies: tuple[str, ...],
    rounds_max: int,
) -> str:
    match key:
        case "profile":
            return f"{{enum: {_list(profiles or sorted(release.profiles))}}}"
        case "strategy":
            return f"{{enum: {_list(strategies)}}}"
        case "rounds":
            return f"{{min: 1, max: {rounds_max}}}"
        case _:
            pass
    if not _bounded(bound):
        return _observed(key, bound, release)
    given = bound.model_dump(include=set(Limits.model_fields), exclude_none=True)
    if not bound.nullable:
        given.pop("nullable")
    return "{" + ", ".join(f"{name}: {_value(value)}" for name, value in given.items()) + "}"


def _bounded(bound: Bound) -> bool:
    return any(limit is not None for limit in (bound.min, bound.max, bound.enum, bound.const))


def _observed(key: str, bound: Bound, release: ReleaseStatement) -> str:
    """The release leaves the key open, so allow what its profiles use; a boolean may be either."""
    nullable = ", nullable: true" if bound.nullable else ""
    if bound.type == "boolean":
        return f"{{enum: [true, false]{nullable}}}"
    used: list[object] = []
    for _, profile in sorted(release.profiles.items()):
        value = profile.get(key)
        for element in value if isinstance(value, tuple) else (value,):
            if element is not None and element not in used:
                used.append(element)
    return f"{{enum: {_value(tuple(used)) if used else '[unused]'}{nullable}}}"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return _q(value) if isinstance(value, str) else _word(value)


def _word(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _q(text: str) -> str:
    """A double-quoted YAML scalar; JSON's escapes are a subset of YAML's."""
    return json.dumps(text, ensure_ascii=False)


def _list(values: Iterable[str]) -> str:
    return "[" + ", ".join(_q(value) for value in values) + "]"


def _plain(values: Iterable[str]) -> str:
    return "[" + ", ".join(values) + "]"
