"""Which msfl is installed here. Not for what runs in containers: a release's image holds its code, and no installation."""

from importlib.metadata import version

SOFTWARE = f"msfl {version('msfl')}"
