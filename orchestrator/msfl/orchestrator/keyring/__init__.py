"""The central keyring: a process of its own, the only holder of the centre's keys."""
