"""What a contained process finds in its environment variables, whatever runtime starts it, and the GPUs it is given.

Nothing of the host's own environment goes in: the list is closed, and the same in a sandbox and in a container.
"""

from __future__ import annotations

from collections.abc import Mapping

from msfl.runtime.interface import Limits


def environment(limits: Limits, scratch: str, tmp: str) -> dict[str, str]:
    """`scratch` and `tmp` as the process sees them. Which GPUs it may use, the runtime adds."""
    threads = str(limits.threads)
    return {
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": tmp,
        "USER": "msfl",
        "LOGNAME": "msfl",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "GOMP_SPINCOUNT": "0",  # OpenMP threads that spin cost two to six times the processor time.
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": scratch,
    }


def granted_gpus(limits: Limits, host: Mapping[str, str]) -> list[str]:
    """By id, in their order, and never more than are granted: those that the host process may use itself."""
    mine = host.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(limits.gpus)))).split(",")
    return [gpu for gpu in mine if gpu][: limits.gpus]
