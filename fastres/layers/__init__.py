"""BatchNorm layers that compute the add and the activation after them too, and `fuse`, which finds such places.

    from fastres.layers import fuse, fused_sites
    model = fuse(torchvision.models.resnet18())
    print(*fused_sites(model), sep="\\n")

`BatchNormAct2d`, `BatchNormAddAct2d` and `DualBatchNormAddAct2d` are for a model's own code; `norm_act` and `dual` do
the same for `nn.BatchNorm2d` modules that stay where they are. Numbers and checkpoints are those of `nn.BatchNorm2d`.
"""

from fastres.layers.batch_norm import BatchNormAct2d, BatchNormAddAct2d, DualBatchNormAddAct2d, dual, norm_act, norm_of
from fastres.layers.fusion import Site, fuse, fused_sites, unfuse

__all__ = ["BatchNormAct2d", "BatchNormAddAct2d", "DualBatchNormAddAct2d", "Site"]
__all__ += ["dual", "fuse", "fused_sites", "norm_act", "norm_of", "unfuse"]
