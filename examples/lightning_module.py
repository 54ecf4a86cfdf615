"""A LightningModule with the loaders, the augmentation and the fused layers of fastres.

    python examples/lightning_module.py --epochs 5

It needs Lightning: pip install lightning.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.augment import Augment, AugmentConfig
from fastres.data import Batch, Dataset, Loader, make_loader, open_dataset
from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import BatchNormAct2d, BatchNormAddAct2d

import_torchvision()  # lightning imports torchvision, which alone does not import under a CPU-only torch
import lightning  # noqa: E402


class Epochs:
    """A fastres loader as Lightning's Trainer takes one: each `iter` gives the batches of the trainer's epoch."""

    def __init__(self, loader: Loader, module: lightning.LightningModule) -> None:
        self.loader, self.module = loader, module

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.loader.batches(self.module.current_epoch)


class ResidualBlock(nn.Module):
    """[N, C, H, W] → the same shape; BatchNorm, addition and ReLU are one layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNormAct2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNormAddAct2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x))), x)


class ResNetModule(lightning.LightningModule):
    """A small residual network, trained on the images of a fastres data set."""

    def __init__(self, dataset: Dataset, batch_size: int, width: int, lr: float) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.lr = dataset, batch_size, lr
        self.augment = Augment(AugmentConfig(translate=2), dataset.mean, dataset.std)
        layers: list[nn.Module] = []
        for in_channels, channels in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False), BatchNormAct2d(channels)]
            layers += [ResidualBlock(channels)]
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.network = nn.Sequential(*layers, *pool, nn.Linear(4 * width, len(dataset.classes)))
        self.network.to(memory_format=torch.channels_last)  # as the batches of `Augment` are

    def train_dataloader(self) -> Epochs:
        return Epochs(make_loader(self.dataset, "train", batch_size=self.batch_size, seed=0, device=self.device), self)

    def val_dataloader(self) -> Epochs:
        return Epochs(make_loader(self.dataset, "test", batch_size=500, device=self.device), self)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch  # the loader has put it there

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # The draws depend on the epoch and on the images' indices in the data set.
        images = self.augment.augment(batch.source, batch.indices, self.current_epoch, batch.rows)
        loss = F.cross_entropy(self.network(images), batch.labels)
        self.log("train_loss", loss, batch_size=len(batch.labels), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.network(self.augment.normalize(batch.source, batch.rows))
        correct = (logits.argmax(1) == batch.labels).float().mean()
        # Lightning would guess the batch size from the first tensor, which may be a whole store.
        self.log("test_accuracy", correct, batch_size=len(batch.labels), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(arguments: Sequence[str] | None = None) -> float:
    """Train as the command line says, and return the test accuracy."""
    parser = argparse.ArgumentParser(description="Train with Lightning on the loaders and layers of fastres.")
    parser.add_argument("--source", default="shapes10", help="as in train_cifar.py")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--lr", type=float, default=0.005, help="highest learning rate")
    args = parser.parse_args(arguments)

    lightning.seed_everything(0)
    # Without logger, checkpoints and a first look at the test set: the example leaves nothing behind.
    trainer = lightning.Trainer(
        max_epochs=args.epochs, logger=False, enable_checkpointing=False, num_sanity_val_steps=0
    )
    trainer.fit(ResNetModule(open_dataset(args.source), args.batch_size, args.width, args.lr))
    test_accuracy = trainer.callback_metrics["test_accuracy"].item()
    print(f"test accuracy {test_accuracy:.2%} after {trainer.global_step} steps")
    return test_accuracy


if __name__ == "__main__":
    main()
