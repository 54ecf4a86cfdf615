"""Whether ours and a rival compute the same: what `Versus` is given before it times anything."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.versus import Same


def near(**limits: float) -> Same:
    """Demands outcomes, dictionaries of tensors or numbers, whose distance |ours - rival| / |rival| (Euclidean norms in
    fp64) is at most the limit that a key has here."""

    def same(ours: Mapping[str, Any], rival: Mapping[str, Any]) -> None:
        for key, limit in limits.items():
            found = distance(torch.as_tensor(ours[key]), torch.as_tensor(rival[key]))
            allowed = f"at most {limit:g} is allowed"
            assert found <= limit, f"{key}: ours and the rival's are {found:.2g} apart, and {allowed}"

    return same


def distance(ours: Tensor, rival: Tensor) -> float:
    """|ours - rival| / |rival|; infinite where the shapes differ or something is not finite."""
    if ours.shape != rival.shape:
        return float("inf")
    own, other = ours.detach().double().cpu(), rival.detach().double().cpu()
    found = float((own - other).norm() / other.norm().clamp_min(torch.finfo(torch.float64).tiny))
    return found if found == found else float("inf")


def identical(ours: Any, rival: Any) -> None:
    """Demands the same structure of dictionaries and lists, and in it equal values: of tensors every bit and stride."""
    assert type(ours) is type(rival), f"{type(ours).__name__} and {type(rival).__name__}"
    if isinstance(ours, Tensor):
        assert (ours.dtype, ours.shape, ours.stride()) == (rival.dtype, rival.shape, rival.stride())
        assert torch.equal(_bits(ours), _bits(rival)), f"a tensor of shape {list(ours.shape)} has other bits"
    elif isinstance(ours, dict):
        assert list(ours) == list(rival)
        for key in ours:
            identical(ours[key], rival[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(rival)
        for own, other in zip(ours, rival, strict=True):
            identical(own, other)
    else:
        assert ours == rival


def _bits(tensor: Tensor) -> Tensor:
    """As integers: a NaN equals itself, and 0 is not -0."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(whole[tensor.element_size()])


def flat(network: nn.Module) -> Tensor:
    """All parameters as one vector on the CPU, in the network's order."""
    return torch.cat([parameter.detach().reshape(-1).cpu() for parameter in network.parameters()])
