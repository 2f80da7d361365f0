"""Entry of the release: `python -m msfl.echo --role worker …` (see `msfl.learning.serve`)."""

import sys

from msfl.echo.model import Echo
from msfl.learning.serve import serve

if __name__ == "__main__":
    sys.exit(serve(Echo()))
