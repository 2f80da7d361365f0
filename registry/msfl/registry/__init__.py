"""Releases: build, push, review, publish, verified pull. The registry itself is never trusted."""
