"""A run as data: events in, state out. Pure; the engine obeys."""
