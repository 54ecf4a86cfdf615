"""Train a small ResNet on 32-pixel images with a training loop of your own: fastres gives the parts, this file the run.

    python examples/train_cifar.py                  # shapes10, drawn on this machine: about a minute on two cores
    python examples/train_cifar.py cifar10 --width 64 --blocks 2 --epochs 30 --translate 4 --cutmix 1
    python examples/train_cifar.py images.tar       # or a folder: train/<class>/*.png and test/<class>/*.png

The first run also draws or decodes the images and compiles the augmentation; both are kept for the next ones.
"""

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.augment import Augment, AugmentConfig, MixConfig
from fastres.data import Loader, make_loader, open_dataset
from fastres.layers import BatchNormAct2d, BatchNormAddAct2d
from fastres.optim import Muon


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    # No bias: the BatchNorm that follows every convolution here has one.
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a skip connection; BatchNorm, addition and ReLU are one layer."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(in_channels, channels, stride=stride), BatchNormAct2d(channels)
        self.conv2, self.bn2 = conv(channels, channels), BatchNormAddAct2d(channels)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:  # else the sum has two shapes
            self.skip = nn.Sequential(
                nn.AvgPool2d(stride), conv(in_channels, channels, kernel=1), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))  # ReLU(BN(conv(x)))
        return self.bn2(self.conv2(y), self.skip(x))  # ReLU(BN(conv(y)) + skip(x))


class ResNet(nn.Module):
    """[N, 3, 32, 32] → logits [N, classes]: a stem, three stages of halved maps and doubled channels, a classifier."""

    def __init__(self, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, width), BatchNormAct2d(width))
        stages, channels = [], width
        for stage in range(3):
            for block in range(blocks):
                stages.append(BasicBlock(channels, width << stage, stride=2 if block == 0 else 1))
                channels = width << stage
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(self.stem(x)).mean((2, 3)))


@torch.no_grad()
def accuracy(model: nn.Module, loader: Loader, augment: Augment, autocast: torch.autocast) -> float:
    """Share of the loader's images that `model` classifies correctly."""
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=loader.device)  # a sum on the device, read once
    for batch in loader.batches():
        with autocast:
            logits = model(augment.normalize(batch.source, batch.rows))  # normalised only, not augmented
        correct += (logits.argmax(1) == batch.labels).sum()
    return correct.item() / len(loader.subset)


def main(arguments: Sequence[str] | None = None) -> float:
    """Train as the command line says, and return the last epoch's test accuracy."""
    parser = argparse.ArgumentParser(description="Train a small ResNet with the parts of fastres.")
    parser.add_argument("source", nargs="?", default="shapes10", help="shapes10, cifar10, cifar100, or a folder or tar")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks in each of the three stages")
    parser.add_argument("--lr", type=float, default=0.02, help="highest learning rate of the convolutions (Muon)")
    parser.add_argument("--translate", type=int, default=2, help="largest random shift in pixels")
    parser.add_argument("--cutmix", type=float, help="alpha of CutMix; by default images are not mixed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)

    # The source is decoded once into a memory-mapped store. Both loaders bring uint8 images to the device.
    dataset = open_dataset(args.source)
    train_loader = make_loader(
        dataset, "train", batch_size=args.batch_size, seed=args.seed, drop_last=True, device=args.device
    )
    test_loader = make_loader(dataset, "test", batch_size=500, device=args.device)  # without a seed: in order

    # From uint8 to the normalised batch in one pass. The draws depend on seed, epoch and an image's index alone.
    policy = AugmentConfig(flip="random", translate=args.translate)
    mix = MixConfig(cutmix_alpha=args.cutmix)
    augment = Augment(policy, dataset.mean, dataset.std, mix=mix, seed=args.seed)

    torch.manual_seed(args.seed)
    model = ResNet(args.width, args.blocks, len(dataset.classes)).to(args.device, memory_format=torch.channels_last)
    device_type = train_loader.device.type
    autocast = torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda")  # many CPUs emulate bf16

    # Muon makes an update orthogonal, which is meant for the convolutions; SGD trains BatchNorm and the classifier.
    filters = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 4]
    optimizers = [Muon(filters, lr=args.lr), torch.optim.SGD(others, lr=args.lr, momentum=0.9, nesterov=True)]
    steps, warmup = args.epochs * len(train_loader), len(train_loader) // 2

    def lr_factor(step: int) -> float:
        return min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))  # up to 1, then down to 0

    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor) for optimizer in optimizers]

    test_accuracy = 0.0
    for epoch in range(args.epochs):
        start, total_loss = time.perf_counter(), torch.zeros((), device=args.device)
        model.train()
        for step, batch in enumerate(train_loader.batches(epoch)):
            images, labels, partners, weight = augment(
                batch.source, batch.labels, batch.indices, epoch, step, batch.rows
            )
            with autocast:
                logits = model(images)
                # `partners` are the labels of the images mixed in, `weight` is 1 where nothing was mixed.
                loss = weight * F.cross_entropy(logits, labels) + (1 - weight) * F.cross_entropy(logits, partners)
            loss.backward()
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            total_loss += loss.detach().squeeze()
        mean_loss = total_loss.item() / len(train_loader)  # waits for the device, so that the time is the epoch's
        speed = len(train_loader) * args.batch_size / (time.perf_counter() - start)
        test_accuracy = accuracy(model, test_loader, augment, autocast)
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {mean_loss:.3f}  test accuracy {test_accuracy:.2%}  "
            f"{speed:,.0f} images/s",
            flush=True,
        )
    return test_accuracy


if __name__ == "__main__":
    main()
