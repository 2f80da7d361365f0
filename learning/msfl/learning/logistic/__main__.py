"""Entry of the release: `python -m msfl.learning.logistic --role worker …` (see `msfl.learning.serve`)."""

import sys

from msfl.learning.logistic.model import VoxelLogistic
from msfl.learning.serve import serve

if __name__ == "__main__":
    sys.exit(serve(VoxelLogistic()))
