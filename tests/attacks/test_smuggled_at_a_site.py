"""A job that carries what a job must not, signed by a user who may submit jobs: the site itself refuses it.

`test_config_smuggling` shows each disguise to the pure rules; here the bytes come over the line, and the site's runtime
and audit log are looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.governed_sites import JOB, OfferedSite, must_be_refused
from msfl.policies.encoding import encode


def spec_with(**changes: Any) -> bytes:
    return json.dumps({**json.loads(encode(JOB)), **changes}).encode()


MALFORMED = {
    "an image": spec_with(image="evil:latest"),
    "an entrypoint": spec_with(entrypoint=["sh", "-c", "id"]),
    "mounts": spec_with(mounts=["/:/host"]),
    "a bool for a number": spec_with(rounds=True),
    "a number as text": spec_with(rounds="50"),
    "a nested setting": spec_with(config={"initial_lr": {"value": 0.01}}),
    "a path as dataset": spec_with(datasets=["site-a/../../etc/passwd", "site-b/ms-cohort"]),
    "an absolute path as dataset": spec_with(datasets=["site-a//etc/passwd", "site-b/ms-cohort"]),
    "a look-alike dataset": spec_with(datasets=["site-a/ms-tri\u0430l", "site-b/ms-cohort"]),
    "infinity by exponent": spec_with(config={"initial_lr": 0}).replace(b'"initial_lr": 0', b'"initial_lr": 1e999'),
    "not a number": spec_with(config={"initial_lr": 0}).replace(b'"initial_lr": 0', b'"initial_lr": NaN'),
    "a setting twice": spec_with(config={"a": 0}).replace(b'"a": 0', b'"initial_lr": 0.01, "initial_lr": 0.9'),
    "rounds twice": spec_with().replace(b'"rounds": 50', b'"rounds": 50, "rounds": 9999'),
    "not JSON": b"rounds: 50",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_job_is_not_read_as_one(tmp_path: Path, name: str) -> None:
    assert MALFORMED[name] != encode(JOB)
    must_be_refused(OfferedSite(tmp_path).told(spec=MALFORMED[name]), "malformed_document")


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"network": "host"}, "config_key_unknown"),
        ({"env": "LD_PRELOAD"}, "config_key_unknown"),
        ({"command": "sh"}, "config_key_unknown"),
        ({"rounds": 9999}, "config_key_unknown"),
        ({"local_epochs": True}, "config_value_invalid"),
        ({"local_epochs": 1.0}, "config_value_invalid"),
        ({"initial_lr": None}, "config_value_invalid"),
        ({"initial_lr": 0.06}, "config_out_of_range"),
    ],
)
def test_a_setting_that_is_not_allowed(tmp_path: Path, config: dict[str, Any], code: str) -> None:
    must_be_refused(OfferedSite(tmp_path).told(spec=spec_with(config=config)), code)


@pytest.mark.parametrize("dataset", ["site-a/ms-other", "site-a/ms-trial.json"])
def test_a_dataset_that_the_site_does_not_publish(tmp_path: Path, dataset: str) -> None:
    must_be_refused(OfferedSite(tmp_path).told(spec=spec_with(datasets=[dataset, "site-b/x"])), "dataset_unknown")


def test_a_profile_that_the_policy_does_not_list_brings_no_setting_past_it(tmp_path: Path) -> None:
    """Its learning rate is one that the policy would refuse from a job: the resolved config is judged."""
    must_be_refused(OfferedSite(tmp_path).told(spec=spec_with(profile="demo")), "config_out_of_range")
