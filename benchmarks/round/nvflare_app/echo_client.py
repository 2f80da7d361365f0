"""NVIDIA FLARE, at a client: take the model, add the site's own little to every tensor, send it back."""

from __future__ import annotations

import sys

import nvflare.client as flare


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from shapes import epsilon

    flare.init()
    little = epsilon(int(flare.get_site_name().rpartition("-")[2]))
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        moved = {name: values + little for name, values in received.params.items()}
        flare.send(flare.FLModel(params_type=flare.ParamsType.FULL, params=moved))


if __name__ == "__main__":
    main()
