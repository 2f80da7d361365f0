"""Where runs and artifacts are kept: two seams, `RunStore` and `ArtifactStore`, with their embedded defaults."""
