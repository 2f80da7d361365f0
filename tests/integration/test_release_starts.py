"""A release that comes with msfl, on its whole way: built, pushed, pulled, its environment verified, started, greeted.

Its code runs from the image alone: the host's own msfl is not on its path.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from msfl.policies.refusals import Code, Refused
from msfl.registry.build import build_release, find_recipe
from msfl.registry.cache import ImageCache
from msfl.registry.oci_layout import LayoutRegistry
from msfl.registry.publish import push_release
from msfl.registry.pull import VerifiedImage, pull
from msfl.runtime.hosted import HostedProcess
from msfl.runtime.interface import StartOrder
from msfl.runtime.process import ProcessRuntime

pytestmark = [pytest.mark.slow, pytest.mark.system]
SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> VerifiedImage:
    folder = tmp_path_factory.mktemp("registry")
    registry = LayoutRegistry.create(folder / "registry")
    digest = push_release(registry, build_release(find_recipe("logistic"), SITE_PACKAGES))
    return pull(registry, digest, ImageCache(folder / "cache"), by="tests")


def order(image: VerifiedImage, tmp_path: Path) -> StartOrder:
    return StartOrder(
        run_id="run-1",
        image=image,
        release="voxel-logistic:1.0.0",
        role="aggregator",
        folder=tmp_path / "box",
        data=None,
        site=None,
        log=tmp_path / "aggregator.log",
    )


@pytest.mark.parametrize("sandbox", ["auto", "none"])
def test_the_release_starts_and_greets(image: VerifiedImage, tmp_path: Path, sandbox: str) -> None:
    runtime = ProcessRuntime(sandbox="auto" if sandbox == "auto" else "none")
    process = HostedProcess.start(runtime, order(image, tmp_path))
    assert process.hello.release == "voxel-logistic:1.0.0"
    assert process.hello.public_key
    process.stop()
    assert runtime.poll(process.handle) is not None
    assert (tmp_path / "aggregator.log").read_text() == ""


def test_in_another_environment_it_does_not_start(image: VerifiedImage, tmp_path: Path) -> None:
    """An empty site-packages folder stands for a host on which other packages are installed."""
    (tmp_path / "site-packages").mkdir()
    runtime = ProcessRuntime(site_packages=tmp_path / "site-packages")
    with pytest.raises(Refused) as refused:
        HostedProcess.start(runtime, order(image, tmp_path))
    assert refused.value.refusal.code is Code.ENVIRONMENT_DIFFERS
    assert "numpy" in refused.value.refusal.fields["distributions"]
    assert not (tmp_path / "aggregator.log").exists()
