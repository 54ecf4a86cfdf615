"""Where the kernels of interpreted/ run: on a CUDA device, in Triton's interpreter, or in the machine of compiled/."""

import os

import torch

from fastres.kernels.batch_norm.launch import INTERPRETED

MACHINE = "FASTRES_PTX_MACHINE" in os.environ
"""Whether compiled kernels run in the PTX machine, on CPU tensors."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED and not MACHINE else "cpu")
SOMEWHERE = INTERPRETED or MACHINE or DEVICE.type == "cuda"
