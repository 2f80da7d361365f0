"""How fast a sealed stream is made and opened: `python benchmarks/sealing.py --mib 512 --folder DIR`.

GB (10^9 bytes) of plaintext per second of processor time, file to file, and with the files left out. Processor time,
because a disk would be measured otherwise; a folder in memory (/dev/shm) shows what the code itself allows.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from msfl.protos.parcel import pack
from msfl.protos.sealing import StreamHeader, open_sealed, seal

HEADER = StreamHeader("run", "train/1", 1, "site-a", 1, "up", "result")
KEY = bytes(range(32))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--mib", type=int, default=512)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--folder", type=Path, default=None)
    asked = arguments.parse_args()
    n_bytes = asked.mib << 20
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        plain, sealed, opened, nowhere = (Path(name) / f for f in ("plain", "sealed", "opened", os.devnull))
        with plain.open("wb") as out:
            for _ in range(asked.mib):
                out.write(os.urandom(1 << 20))
        for what, job in (
            ("seal, file to file", lambda: _seal(plain, sealed)),
            ("open, file to file", lambda: _open(sealed, opened)),
            ("seal, to nowhere", lambda: _seal(plain, nowhere)),
            ("open, to nowhere", lambda: _open(sealed, nowhere)),
        ):
            best = min(_seconds(job) for _ in range(asked.repeats))
            print(f"{what:20} {n_bytes / 1e9 / best:5.2f} GB/s")
    print(f"peak memory          {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:5} MiB")


def _seal(plain: Path, sealed: Path) -> None:
    with plain.open("rb") as source, sealed.open("wb") as out:
        seal(KEY, HEADER, pack({}, source), out, salt=os.urandom(32))


def _open(sealed: Path, opened: Path) -> None:
    with sealed.open("rb") as source, opened.open("wb") as out:
        open_sealed(KEY, HEADER, source, out)


def _seconds(job: Callable[[], None]) -> float:
    begun = time.process_time()
    job()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
