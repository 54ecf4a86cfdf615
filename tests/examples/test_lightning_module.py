"""Lightning's Trainer trains on the loaders, the augmentation and the layers of fastres."""

import importlib.util

import pytest

if importlib.util.find_spec("lightning") is None:
    pytest.skip("lightning is not installed: pip install lightning", allow_module_level=True)

from examples import lightning_module

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),  # Lightning's own, of torch 2.13
]


def test_it_learns() -> None:
    # Chance is 10% of 2,000 images, with a standard deviation of 0.7 points; 200 steps end between 18% and 25%,
    # as the machine rounds.
    assert lightning_module.main(["--epochs", "1", "--width", "8"]) > 0.15


def test_each_epoch_has_an_order_of_its_own() -> None:
    """What Lightning iterates over is the loader's epoch that it trains, however often it asks."""
    dataset = lightning_module.open_dataset("shapes10")
    module = lightning_module.ResNetModule(dataset, batch_size=50, width=8, lr=0.01)

    class Trainer:
        current_epoch = 0

    module._trainer = trainer = Trainer()
    batches = module.train_dataloader()
    first, again = next(iter(batches)).indices.tolist(), next(iter(batches)).indices.tolist()
    trainer.current_epoch = 1
    assert first == again != next(iter(batches)).indices.tolist()
    assert len(batches) == 200
