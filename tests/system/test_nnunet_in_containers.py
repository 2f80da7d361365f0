"""nnU-Net itself, trained by two sites in containers: everything it runs, torch included, comes from the image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.federations import LiveFederation, until
from fakes.os_image import saved_base
from msfl.registry.cache import ImageCache
from msfl.registry.oci_layout import LayoutRegistry
from msfl.registry.pull import pull
from msfl.runtime.docker import DockerRuntime
from msfl.sdk.reporting import report_document

pytestmark = [pytest.mark.system, pytest.mark.slow]
NEEDS = (
    "torch", "nnunetv2", "numpy", "safetensors", "nibabel", "SimpleITK", "matplotlib", "cryptography", "blake3",
)  # fmt: skip
PAIR = ("site-a", "site-b")


@pytest.fixture(scope="module")
def live(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    folder = tmp_path_factory.mktemp("nnunet")
    base = saved_base(folder, NEEDS)
    with LiveFederation.up(folder / "f", "nnunet", PAIR, base=str(base), engine=engine, edge=40) as live:
        base.unlink()
        loaded(live, engine, folder)
        yield live


def loaded(live: LiveFederation, engine: str, folder: Path) -> None:
    """Given to the engine once, before three parties of one machine would do it at the same time."""
    assert live.federation.statement is not None
    runtime = DockerRuntime(engine, keeper="loads")
    registry = LayoutRegistry(Path(live.federation.registry_location))
    image = pull(registry, live.federation.statement.digest, ImageCache(folder / "cache"), by="loads", whole=True)
    runtime._load(image)
    runtime.close()


def test_two_sites_train_one_nnunet_in_containers(live: LiveFederation) -> None:
    run = live.client.submit(live.job(rounds=2, min_sites=2, config={"batches_per_epoch": 2}))
    state = run.wait()
    assert state["phase"] == "finished", state["reason"]
    assert [set(r["sites"]) for r in state["rounds"]] == [set(PAIR)] * 2
    report = report_document(state)
    assert report["plan"]["patch_size"]
    for site in PAIR:
        started = next(e for e in live.audit(site, run.run_id) if e["action"] == "worker starts")
        assert started["fields"]["isolation"] == "container"
        box = live.home(site) / "runs" / run.run_id / "box"
        until(lambda box=box: not box.exists(), "the gateway to take away what the container left")  # type: ignore[misc]  # bound at once
    assert set(report["evaluation"]["federated"]) == set(PAIR)
