"""Import torchvision, under a CPU-only torch too.

torchvision's wheel on the package index is built for CUDA. Under a CPU-only torch its library `_C.so` does not load,
so that nobody declares the operators `torchvision::nms` and `torchvision::qnms`; but `import torchvision` describes
both to the compiler and fails for want of them. Declared here without an implementation, they let the import pass;
datasets and transforms, which are all Python, then work. Nothing in fastres calls the two.
"""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType


@functools.cache
def import_torchvision() -> ModuleType:
    """The module torchvision, imported so that it works with the torch at hand."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is missing: pip install torchvision")
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    import torchvision
    import torchvision.datasets  # its utilities are used too

    return torchvision


_kept: list[object] = []  # a torch.library.Library takes its declarations with it when it is collected
