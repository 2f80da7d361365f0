"""The benchmark's Flower app; `shapes` is on the path of its processes."""
