"""The nnU-Net release: nnU-Net's own planning, preprocessing, training and inference behind `FederatedModel`.

nnU-Net and OpenMP read the variables below when they are imported, so they are set here, before any module of this
package can import them; what the host has set already is respected. Batches are made in this process and nothing is
compiled. Idle OpenMP threads sleep instead of spinning, which costs the neighbours their cores.
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
