"""A release that trains nothing: what a round costs when no learning is in it."""
