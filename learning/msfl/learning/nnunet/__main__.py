"""Entry of the nnU-Net release: `python -m msfl.learning.nnunet --role worker …` (see `msfl.learning.serve`).

The variables below must be set before nnU-Net and OpenMP are imported. nnU-Net makes batches in this process and does
not compile; idle OpenMP threads sleep instead of spinning, which costs others their cores.
"""

import os

for _name, _value in {
    "nnUNet_n_proc_DA": "0",
    "nnUNet_compile": "0",
    "nnUNet_def_n_proc": "1",
    "nnUNet_wandb_enabled": "0",
    "MPLBACKEND": "agg",
    "GOMP_SPINCOUNT": "0",
}.items():
    os.environ.setdefault(_name, _value)

if __name__ == "__main__":
    from msfl.learning.nnunet.model import NnUNet
    from msfl.learning.serve import serve

    serve(NnUNet())
