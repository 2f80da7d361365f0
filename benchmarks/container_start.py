"""How much longer a container takes than a process until it is ready for its first task.

    python benchmarks/container_start.py --engine unix:///var/run/docker.sock --base base.tar [--repeats 10]

One release, the small one, as an image that both runtimes can start; each start is timed from `HostedProcess.start` to
the release's greeting, the environment verified in between as at a site. Starts are interleaved, so that both meet the
same machine. `first` is the first start in a container, where the engine is given the image. Asked: ≤ 1.5 s more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path

from msfl.registry.base import read_base
from msfl.registry.build import build_release, find_recipe
from msfl.registry.cache import ImageCache
from msfl.registry.oci_layout import LayoutRegistry
from msfl.registry.publish import push_release
from msfl.registry.pull import pull
from msfl.runtime.choice import DEFAULT_ENGINE
from msfl.runtime.docker import DockerRuntime
from msfl.runtime.hosted import HostedProcess
from msfl.runtime.interface import Runtime, StartOrder
from msfl.runtime.process import ProcessRuntime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=DEFAULT_ENGINE)
    parser.add_argument("--base", required=True, help="what `msfl registry build --base` takes")
    parser.add_argument("--release", default="logistic")
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="msfl-start-") as name:
        print(json.dumps(measure(Path(name), given), indent=1))


def measure(folder: Path, given: argparse.Namespace) -> dict[str, object]:
    registry = LayoutRegistry.create(folder / "registry")
    (folder / "base").mkdir()
    base = read_base(given.base, folder / "base")
    release = build_release(find_recipe(given.release), Path(sysconfig.get_paths()["purelib"]), base=base)
    digest = push_release(registry, release)
    cache = ImageCache(folder / "images")
    runtimes: dict[str, Runtime] = {
        "process": ProcessRuntime(),
        "container": DockerRuntime(given.engine, keeper=f"benchmark {folder}"),
    }
    taken: dict[str, list[float]] = {name: [] for name in runtimes}
    for repeat in range(given.repeats + 1):
        for name, runtime in runtimes.items():
            image = pull(registry, digest, cache, by=name, whole=runtime.whole_images)
            box = folder / f"{name}-{repeat}"
            box.mkdir()
            data = folder / "data"
            data.mkdir(exist_ok=True)
            order = StartOrder("bench", image, release.ref, "worker", box, data, "site-a", folder / f"{name}.log")
            since = time.perf_counter()
            process = HostedProcess.start(runtime, order)
            taken[name].append(time.perf_counter() - since)
            process.stop()
    first = {name: round(times[0], 2) for name, times in taken.items()}
    later = {name: [round(t, 2) for t in times[1:]] for name, times in taken.items()}
    middle = {name: statistics.median(times) for name, times in later.items()}
    return {
        "first": first,
        "starts": later,
        "median": middle,
        "more_s": round(middle["container"] - middle["process"], 2),
        "protections": {name: runtime.protections().isolation.value for name, runtime in runtimes.items()},
    }


if __name__ == "__main__":
    main()
