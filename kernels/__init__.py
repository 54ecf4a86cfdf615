"""Kernels of fastres, imported as `fastres.kernels`.

The folder stands at the top of the repository; the package reaches it through the link fastres/kernels. It is never a
module of its own: the name `kernels` belongs to Hugging Face's package.
"""

if __name__ == "kernels":
    raise ImportError("this folder is imported as fastres.kernels: write `import fastres.kernels`")

from fastres.kernels.batch_norm.functional import batch_norm_act, dual_batch_norm_act
from fastres.kernels.batch_norm.types import ACTIVATIONS, BACKENDS, Norm

__all__ = ["ACTIVATIONS", "BACKENDS", "Norm", "batch_norm_act", "dual_batch_norm_act"]
