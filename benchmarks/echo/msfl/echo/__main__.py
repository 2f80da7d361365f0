"""`Echo`: the model whose only tensor is as large as the job asks for. Its sites are simulated by `many_sites.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msfl.learning.serve import serve


class Echo:
    """The centre's half of `msfl.learning.contract.FederatedModel`; no worker is ever started."""

    def plan(self, fingerprints: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        return {"kib": config["kib"]}

    def initial(self, plan: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        return {"echo": np.random.default_rng(config["seed"]).standard_normal(plan["kib"] * 256, dtype=np.float32)}

    def export(self, plan: Any, weights: Any, labels: Any, folder: Path) -> None:
        (folder / "echo.txt").write_text(f"{weights['echo'].size}\n")


if __name__ == "__main__":
    sys.exit(serve(Echo()))  # type: ignore[arg-type]  # half a model
