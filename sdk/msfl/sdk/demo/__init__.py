"""`msfl demo`: the whole federation on this machine, each part a process of its own, a report at the end."""
