"""Which msfl is installed here. Not for what runs in containers: an image holds code of msfl, and no installation."""

from importlib.metadata import version

SOFTWARE = f"msfl {version('msfl')}"
