"""The recipe: every choice of a run, typed, with a docstring a field.

A recipe is a TOML file. `extends = "other.toml"` starts from another one (a path relative to the file), and
`--set table.key=value` changes single values. Keys that do not exist, values of a wrong type and combinations that
cannot work are errors that name the file, the key and, for a misspelling, the nearest key there is. The resolved
recipe, with every default written out, goes into the run directory and reproduces the run by itself.

Each file of this package holds the tables of one subject. To add a table: write a `Table` with a docstring under each
field, and add it to `Recipe`, or register it (kinds.py) where a recipe chooses one of several by `name`. The schema,
`--set`, `fastres show` and the error messages follow. loading.py does the parsing and the messages.
"""

from typing import Any

from fastres import aliases
from fastres.recipe.augmentation import AugmentConfig as AugmentConfig
from fastres.recipe.augmentation import ColorJitterConfig as ColorJitterConfig
from fastres.recipe.augmentation import ErasingConfig as ErasingConfig
from fastres.recipe.augmentation import MixConfig as MixConfig
from fastres.recipe.augmentation import RandomResizedCropConfig as RandomResizedCropConfig
from fastres.recipe.data import DataConfig as DataConfig
from fastres.recipe.data import ExtraConfig as ExtraConfig
from fastres.recipe.fields import Precision as Precision
from fastres.recipe.fields import Table as Table
from fastres.recipe.loading import explain
from fastres.recipe.methods import DinoConfig as DinoConfig
from fastres.recipe.methods import DistillConfig as DistillConfig
from fastres.recipe.methods import EmpSslConfig as EmpSslConfig
from fastres.recipe.methods import PseudoLabelConfig as PseudoLabelConfig
from fastres.recipe.methods import SelfSupervisedConfig as SelfSupervisedConfig
from fastres.recipe.methods import SupervisedConfig as SupervisedConfig
from fastres.recipe.methods import TransferConfig as TransferConfig
from fastres.recipe.networks import PRESETS as PRESETS
from fastres.recipe.networks import ModelConfig as ModelConfig
from fastres.recipe.networks import SpeednetConfig as SpeednetConfig
from fastres.recipe.optimizers import AdamConfig as AdamConfig
from fastres.recipe.optimizers import AdamWConfig as AdamWConfig
from fastres.recipe.optimizers import MuonConfig as MuonConfig
from fastres.recipe.optimizers import SgdConfig as SgdConfig
from fastres.recipe.recipe import Recipe as Recipe
from fastres.recipe.running import EvalConfig as EvalConfig
from fastres.recipe.running import LookaheadConfig as LookaheadConfig
from fastres.recipe.running import RecordConfig as RecordConfig
from fastres.recipe.running import TrainConfig as TrainConfig
from fastres.recipe.schedules import ConstantConfig as ConstantConfig
from fastres.recipe.schedules import CosineConfig as CosineConfig
from fastres.recipe.schedules import KnotsConfig as KnotsConfig
from fastres.recipe.schedules import LinearConfig as LinearConfig
from fastres.recipe.schedules import OneCycleConfig as OneCycleConfig
from fastres.recipe.schedules import StepConfig as StepConfig
from fastres.recipe.schema import schema as schema
from fastres.recipe.sweeps import PointConfig as PointConfig
from fastres.recipe.sweeps import RangeConfig as RangeConfig
from fastres.recipe.sweeps import SearchConfig as SearchConfig
from fastres.recipe.sweeps import SweepConfig as SweepConfig

Table.explain = explain


def __getattr__(name: str) -> Any:
    """A table by the name that it had: see aliases.py."""
    return aliases.table(name, globals())
