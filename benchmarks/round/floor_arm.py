"""The floor: bare grpcio with mutual TLS, three clients, one server, an in-place sum. Its file is used unchanged.

`python floor_arm.py FLOOR_FOLDER MARKS ARGUMENT …` runs the floor's own `main` with its own arguments, in the way its
README says, and does one thing beside: the floor asks the clock at both ends of a round, and whoever asks through its
name `time` is also written down, so that the meter knows which CPU seconds belong to the measured rounds.
Wall times are those that the floor prints itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHUNK_KIB = 1024
SITES, MODEL_MB = 3, 124.782376  # both are written into the floor
# For glibc: one arena, large blocks stay with the process instead of going back to the kernel after each use.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def check(floor: Path) -> None:
    """Raises CannotMeasure."""
    from measured import CannotMeasure

    for name in ("grpc_floor.py", "certs.sh"):
        if not (floor / name).is_file():
            raise CannotMeasure(f"{floor} has no {name}: name the floor's folder with --floor or MSFL_FLOOR")


def measure(task: Any, floor: Path, *, settings_m: bool = False) -> Any:
    """Raises CannotMeasure."""
    from measured import CannotMeasure, from_marks, read_marks
    from meter import Meter

    arm = "floor+M" if settings_m else "floor"
    if (task.sites, task.model_mb) != (SITES, MODEL_MB):
        raise CannotMeasure(f"the floor knows {SITES} sites and one model of {MODEL_MB:.1f} MB only")
    certificates, marks = task.scratch / "certificates", task.scratch / "marks"
    subprocess.run(["bash", floor / "certs.sh", certificates], check=True, capture_output=True)
    environment = os.environ | {"FLOOR_CERTS": str(certificates)} | (MALLOC if settings_m else {})
    command = [sys.executable, __file__, floor, marks, "mtls", str(CHUNK_KIB), str(task.rounds)]
    with Meter(_name) as meter:
        with open(task.scratch / "floor.log", "wb") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
            output, _ = child.communicate()
        if child.returncode != 0:
            last = (task.scratch / "floor.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise CannotMeasure(f"the floor ended with status {child.returncode}: {' '.join(last)}")
        time.sleep(0.3)  # One more look of the meter after the last round.
        asked = read_marks(marks)  # begin and end of each round, in turn
        measured = from_marks(arm, asked[1::2], meter)
    said = json.loads(output.splitlines()[-1])
    # A round of the floor lasts from its first request to its sum, as the floor has it.
    measured.seconds = said["rounds_s"][-len(measured.seconds) :]
    measured.extra["said"] = said
    return measured


def _name(command: list[str]) -> str | None:
    if __file__ in command:
        return "server"
    return "client" if any("spawn_main" in word for word in command) else None


class _Clock:
    """Stands for the module `time` in the floor."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        now = time.time()
        with open(self._marks, "a") as file:
            file.write(f"{now!r}\n")
        return now


def main() -> None:
    floor, marks = sys.argv[1:3]
    sys.path.insert(0, floor)
    import grpc_floor

    grpc_floor.time = _Clock(Path(marks))
    sys.argv = ["grpc_floor.py", *sys.argv[3:]]
    grpc_floor.main()


if __name__ == "__main__":
    main()
