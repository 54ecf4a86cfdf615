"""The recipe: every choice of a run, typed, with a docstring a field.

A recipe is a TOML file. `extends = "other.toml"` starts from another one (a path relative to the file), and
`--set table.key=value` changes single values. Keys that do not exist, values of a wrong type and combinations that
cannot work are errors that name the file, the key and, for a misspelling, the nearest key there is. The resolved
recipe, with every default written out, goes into the run directory and reproduces the run by itself.

Each file of this package holds the tables of one subject; all are imported from here. To add a table: write a `Table`
with a docstring under each field, and add it to `Recipe`. The schema, `--set`, `fastres show` and the error messages
follow. loading.py does the parsing and the messages.
"""

from typing import Any

from fastres import aliases
from fastres.recipe.augmentation import (
    AugmentConfig,
    ColorJitterConfig,
    ErasingConfig,
    MixConfig,
    RandomResizedCropConfig,
)
from fastres.recipe.data import DataConfig, ExtraConfig
from fastres.recipe.fields import Precision, Table
from fastres.recipe.methods import (
    DinoConfig,
    DistillConfig,
    EmpSslConfig,
    PseudoLabelConfig,
    SelfSupervisedConfig,
    SupervisedConfig,
    TransferConfig,
)
from fastres.recipe.networks import PRESETS, ModelConfig, SpeednetConfig
from fastres.recipe.optimizers import AdamConfig, AdamWConfig, MuonConfig, SgdConfig
from fastres.recipe.recipe import Recipe
from fastres.recipe.running import EvalConfig, LookaheadConfig, RecordConfig, TrainConfig
from fastres.recipe.schedules import ConstantConfig, CosineConfig, KnotsConfig, LinearConfig, OneCycleConfig, StepConfig
from fastres.recipe.schema import schema
from fastres.recipe.sweeps import PointConfig, RangeConfig, SearchConfig, SweepConfig

__all__ = [
    "PRESETS",
    "AdamConfig",
    "AdamWConfig",
    "AugmentConfig",
    "ColorJitterConfig",
    "ConstantConfig",
    "CosineConfig",
    "DataConfig",
    "DinoConfig",
    "DistillConfig",
    "EmpSslConfig",
    "ErasingConfig",
    "EvalConfig",
    "ExtraConfig",
    "KnotsConfig",
    "LinearConfig",
    "LookaheadConfig",
    "MixConfig",
    "ModelConfig",
    "MuonConfig",
    "OneCycleConfig",
    "PointConfig",
    "Precision",
    "PseudoLabelConfig",
    "RandomResizedCropConfig",
    "RangeConfig",
    "Recipe",
    "RecordConfig",
    "SearchConfig",
    "SelfSupervisedConfig",
    "SgdConfig",
    "SpeednetConfig",
    "StepConfig",
    "SupervisedConfig",
    "SweepConfig",
    "Table",
    "TrainConfig",
    "TransferConfig",
    "schema",
]


def __getattr__(name: str) -> Any:
    """A table by the name that it had: see aliases.py."""
    return aliases.table(name, globals())
