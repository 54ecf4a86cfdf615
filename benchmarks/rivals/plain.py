"""Training and evaluating as one writes it in PyTorch without fastres: what the suites of whole epochs, of evaluation
and of the time to an accuracy compare with.

torchvision's transforms take Pillow images one at a time, in the processes of a DataLoader, one for each core. The
network is the same, of stock layers, and runs eagerly in fp32; torch's own optimizer and scheduler follow it.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.steps import PlainResNet
from fastres.augment import Augment
from fastres.data.compat.torchvision import import_torchvision
from fastres.optim import factor
from fastres.recipe import AdamWConfig, AugmentConfig, Recipe, SgdConfig
from fastres.recipe.networks import ModelConfig
from fastres.training.data import DataModule

import_torchvision()
from torchvision import transforms  # noqa: E402

CORES = len(os.sched_getaffinity(0))


def stock(network: nn.Module, recipe: Recipe) -> PlainResNet:
    """The ResNet that `network` is, of stock layers and with its weights and statistics, in N, C, H, W on the CPU."""
    assert isinstance(recipe.model, ModelConfig)
    plain = PlainResNet(recipe.model.blocks, recipe.model.channels)
    with torch.no_grad():
        # The layers come in the same order, under other names.
        for own, given in zip(plain.state_dict().values(), network.state_dict().values(), strict=True):
            own.copy_(given)
    return plain


def pipeline(policy: AugmentConfig, mean: Sequence[float], std: Sequence[float]) -> Any:
    """`policy` as torchvision's transforms of Pillow images, in the order of the report's code: those operations that
    the recipes of the benchmarks have."""
    steps: list[Any] = []
    if crop := policy.random_resized_crop:
        mode = transforms.InterpolationMode(crop.interpolation)
        steps.append(transforms.RandomResizedCrop(32, tuple(crop.scale), tuple(crop.ratio), mode))
    if policy.translate:
        padding = {"zero": "constant", "reflect": "reflect"}[policy.padding]
        steps.append(transforms.RandomCrop(32, policy.translate, padding_mode=padding))
    if jitter := policy.color_jitter:
        change = transforms.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        steps.append(transforms.RandomApply([change], p=jitter.p))
    if policy.autocontrast:
        steps.append(transforms.RandomAutocontrast(policy.autocontrast))
    if policy.grayscale:
        steps.append(transforms.RandomGrayscale(policy.grayscale))
    if policy.flip == "random":
        steps.append(transforms.RandomHorizontalFlip())
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """uint8 [N, 32, 32, 3] and labels, as torchvision's CIFAR10 keeps and gives them."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Plain:
    """`network`, of stock layers, in training by `recipe` on the images of `data_module`: its batch size, augmentation,
    optimizer (SGD or AdamW) and schedule."""

    def __init__(self, network: nn.Module, recipe: Recipe, data_module: DataModule, device: torch.device) -> None:
        self.network, self.device = stock(network, recipe).to(device), device
        mean, std = data_module.augment.mean.tolist(), data_module.augment.std.tolist()
        transform = pipeline(recipe.augment, mean, std)
        data = Images(data_module.train_images, data_module.train_labels, transform)
        self.loader: Any = torch.utils.data.DataLoader(
            data, recipe.train.batch_size, shuffle=True, num_workers=CORES, drop_last=recipe.train.drop_last
        )
        options = recipe.optimizer
        assert isinstance(options, (SgdConfig, AdamWConfig))
        parameters = [*self.network.parameters()]
        decayed = [each for each in parameters if options.decay_norm_and_bias or each.ndim > 1]
        others = [each for each in parameters if not options.decay_norm_and_bias and each.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        self.optimizer: torch.optim.Optimizer
        if isinstance(options, SgdConfig):
            self.optimizer = torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=options.lr)
        schedule, steps, epochs = recipe.schedule, len(self.loader), recipe.train.epochs
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: factor(schedule, min(step, round(epochs * steps)), steps, epochs)
        )
        self.loss = 0.0
        """Sum of the steps' losses."""

    def epoch(self) -> Iterator[int]:
        """Train on all images once; yields the images of each step when it is done."""
        for images, labels in self.loader:
            self.network.train()
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.network(images.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.loss += loss.item()
            yield len(images)


@torch.no_grad()
def logits(
    network: nn.Module, images: Tensor, batch: int, dtype: torch.dtype = torch.float32, tta: str = "none"
) -> Tensor:
    """fp32 [N, classes] on the CPU, of normalised images [N, 3, H, W]; in another `dtype` under autocast. `tta` as in
    the recipe: the mean of an image and its mirror image, or half of that and half of both shifted by a pixel up and
    left and down and right."""
    network.eval()
    device = next(network.parameters()).device
    found = []
    for part in images.split(batch):
        seen = part.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if tta == "none":
                found.append(network(seen).float())
                continue
            mean = _with_mirror(network, seen)
            if tta == "translate":
                padded, side = F.pad(seen, (1, 1, 1, 1), mode="reflect"), seen.shape[-1]
                shifted = [_with_mirror(network, padded[..., at : at + side, at : at + side]) for at in (0, 2)]
                mean = mean / 2 + (shifted[0] + shifted[1]) / 4
            found.append(mean)
    return torch.cat(found).cpu()


def _with_mirror(network: nn.Module, images: Tensor) -> Tensor:
    return (network(images).float() + network(images.flip(3)).float()) / 2


def normalised(images: NDArray[np.uint8], augment: Augment) -> Tensor:
    """uint8 [N, H, W, 3] → fp32 [N, 3, H, W], by the mean and SD that `augment` normalises with."""
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous().float() / 255
    return (pixels - augment.mean.float()[:, None, None]) / augment.std.float()[:, None, None]
