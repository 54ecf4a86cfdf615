"""Fuse the BatchNorm layers of a timm model in a training loop that knows nothing of fastres, and give it back.

    python examples/fuse_timm.py --model resnet18

It needs timm: pip install timm.
"""

import argparse
import copy
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import fuse, fused_sites, unfuse

import_torchvision()  # timm imports torchvision, which alone does not import under a CPU-only torch
import timm  # noqa: E402


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> list[float]:
    """Somebody's own loop: nothing here is of fastres. Returns the loss of each step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def largest_difference(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Largest difference of the two models' logits, relative to the largest logit."""
    logits, expected = model(images), other(images)
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare a timm model with itself, fused, before, during and after training."""
    parser = argparse.ArgumentParser(description="Fuse a timm model in a training loop of your own.")
    parser.add_argument("--model", default="resnet18", help="a timm model with nn.BatchNorm2d, such as resnet26")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    plain = timm.create_model(args.model, num_classes=10).to(args.device)
    keys = list(plain.state_dict())
    # `fuse` changes the model in place: the copy stays as timm made it, for the comparison.
    fused = fuse(copy.deepcopy(plain))
    sites = fused_sites(fused)
    norms, inside = sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()), sum(len(site.norms) for site in sites)
    print(f"{args.model}: {len(sites)} sites fused, with {inside} of {norms} BatchNorms")
    print(f"for example {sites[0]}; {sites[-1]}")

    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    labels = torch.arange(args.batch_size, device=args.device) % 10
    # fp32 sums in another order differ in the last bits.
    print(f"logits differ by {largest_difference(fused.train(), plain.train(), images):.1e} of the largest in training")
    print(f"and by {largest_difference(fused.eval(), plain.eval(), images):.1e} in evaluation")

    for name, model in (("plain", plain), ("fused", fused)):
        start = time.perf_counter()
        losses = train(model, images, labels, args.steps)
        seconds = time.perf_counter() - start
        print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f} in {args.steps} steps, {seconds:.1f} s")

    unfuse(fused)
    print(f"unfused: {len(fused_sites(fused))} sites left, class {type(fused).__module__}.{type(fused).__name__}")
    print(f"same keys as before: {list(fused.state_dict()) == keys}")
    timm.create_model(args.model, num_classes=10).load_state_dict(fused.state_dict())  # raises where a key differs
    print("a new timm model took its weights")


if __name__ == "__main__":
    main()
