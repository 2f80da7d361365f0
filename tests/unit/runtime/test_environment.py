"""A contained process inherits nothing, and sees the GPUs that are granted and the host may use."""

from __future__ import annotations

import pytest

from msfl.runtime.environment import environment, granted_gpus
from msfl.runtime.interface import Limits


@pytest.mark.parametrize(
    ("gpus", "host", "granted"),
    [
        (0, {"CUDA_VISIBLE_DEVICES": "0,1"}, []),
        (1, {"CUDA_VISIBLE_DEVICES": "3,5"}, ["3"]),
        (4, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, ["GPU-a", "GPU-b"]),
        (1, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (2, {}, ["0", "1"]),
    ],
)
def test_gpus_are_those_of_the_host_and_no_more_than_granted(
    gpus: int, host: dict[str, str], granted: list[str]
) -> None:
    assert granted_gpus(Limits(gpus=gpus), host) == granted


def test_threads_and_folders_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    inside = environment(Limits(threads=3), "/run/msfl/scratch", "/tmp")
    assert (inside["HOME"], inside["TMPDIR"], inside["OMP_NUM_THREADS"]) == ("/run/msfl/scratch", "/tmp", "3")
    assert "HTTPS_PROXY" not in inside
