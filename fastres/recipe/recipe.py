"""The recipe as a whole: its tables, and what must hold between them."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import model_validator

from fastres.recipe import methods
from fastres.recipe.augmentation import AugmentConfig, MixConfig
from fastres.recipe.data import DataConfig
from fastres.recipe.fields import Table
from fastres.recipe.networks import NETWORKS, ModelConfig, NetworkConfig
from fastres.recipe.optimizers import OPTIMIZERS, OptimizerConfig, SgdConfig
from fastres.recipe.running import EvalConfig, RecordConfig, TrainConfig
from fastres.recipe.schedules import SCHEDULES, CosineConfig, KnotsConfig, ScheduleConfig
from fastres.recipe.sweeps import SweepConfig


class Recipe(Table):
    """Every choice of a run."""

    data: DataConfig = DataConfig()
    """Images and split."""
    model: Annotated[NetworkConfig, NETWORKS] = ModelConfig()
    """Network."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of training images."""
    mix: MixConfig = MixConfig()
    """Mixing of images within a batch."""
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = SgdConfig()
    """Optimizer."""
    schedule: Annotated[ScheduleConfig, SCHEDULES] = CosineConfig()
    """Learning-rate schedule."""
    train: TrainConfig = TrainConfig()
    """The run."""
    method: Annotated[methods.MethodConfig, methods.METHODS] = methods.SupervisedConfig()
    """Training method: labels alone, or what is learnt from besides them."""
    transfer: methods.TransferConfig | None = None
    """Weights to start from; by default drawn ones."""
    eval: EvalConfig = EvalConfig()
    """Measuring."""
    record: RecordConfig = RecordConfig()
    """Records."""
    sweep: SweepConfig | None = None
    """Many runs instead of one, for `fastres sweep`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        train, best = self.train, self.train.best
        if best is not None:
            metrics = [f"{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy")]
            if best not in metrics:
                raise ValueError(f"train.best is '{best}', which no run logs: choose one of {', '.join(metrics)}")
            if best.startswith("val_") and self.data.split == "none":
                raise ValueError(f"train.best = '{best}' needs validation images: set data.split to 'holdout'")
            if best.startswith("test_") and self.eval.test_every != 1:
                raise ValueError(f"train.best = '{best}' needs a test after each epoch: set eval.test_every to 1")
        if train.early_stopping and best is None:
            raise ValueError("train.early_stopping needs a metric: set train.best, for example to 'val_loss'")
        if self.method.learns_features and self.mix.active:
            raise ValueError(f"{self.method.setting} compares views of one image: leave the mix table out")
        if isinstance(self.method, methods.DinoConfig) and (train.ema or train.lookahead):
            raise ValueError(
                "method.name = 'dino' averages by method.teacher_momentum: no train.ema or train.lookahead"
            )
        if self.schedule.warmup_epochs >= train.epochs:
            raise ValueError("schedule.warmup_epochs must be below train.epochs")
        if isinstance(self.schedule, KnotsConfig) and self.schedule.points[-1][0] > train.epochs:
            raise ValueError(
                f"schedule.points end at epoch {self.schedule.points[-1][0]:g}, after train.epochs = {train.epochs:g}: "
                "move the points, or train for longer"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: str | list[str] | None = None) -> "Recipe":
        """Read a recipe from `path`, with `overrides` such as `"train.epochs=3"` on top.

        Raises UserError for anything wrong in the file, in a file it extends, or in an override.
        """
        from fastres.recipe.loading import load
        from fastres.utils.paths import expand_home

        return load(cls, expand_home(path), [overrides] if isinstance(overrides, str) else overrides or [])

    def check_single(self) -> None:
        """Raise UserError where the recipe is a sweep, which stands for many runs."""
        if self.sweep is not None:
            from fastres.errors import UserError

            raise UserError("this recipe has a [sweep], which is many runs: train them with `fastres sweep RECIPE`")

    def to_toml(self) -> str:
        """The whole recipe as TOML. Keys without a value are left out: TOML has no null."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def hash(self) -> str:
        """Twelve hexadecimal digits that change with any choice that changes the numbers of a run."""
        import json

        changes_nothing: dict[str, Any] = {
            "record": True,
            "sweep": True,
            "data": {"root", "loader", "workers"},
            "train": {"checkpoint_seconds"},
        }
        values = self.model_dump(exclude=changes_nothing)
        if isinstance(self.method, methods.DistillConfig) and isinstance(self.method.teacher, dict):
            values["method"]["teacher"] = Recipe.model_validate(self.method.teacher).hash()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
