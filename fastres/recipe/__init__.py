"""The recipe: every choice of a run, typed, with a docstring a field.

A recipe is a TOML file. `extends = "other.toml"` starts from another one (a path relative to the file), and
`--set table.key=value` changes single values. Keys that do not exist, values of a wrong type and combinations that
cannot work are errors that name the file, the key and, for a misspelling, the nearest key there is. The resolved
recipe, with every default written out, goes into the run directory and reproduces the run by itself.

Each file of this package holds the tables of one subject; all are imported from here. To add a table: write a `Table`
with a docstring under each field, and add it to `Recipe`. The schema, `--set`, `fastres show` and the error messages
follow. loading.py does the parsing and the messages.
"""

from fastres.recipe.augmentation import Augment, ColorJitter, Erasing, Mix, RandomResizedCrop
from fastres.recipe.data import Data, Extra
from fastres.recipe.fields import Precision, Table
from fastres.recipe.methods import Dino, Distill, EmpSsl, PseudoLabel, SelfSupervised, Supervised, Transfer
from fastres.recipe.networks import PRESETS, Model, Speednet
from fastres.recipe.optimizers import Adam, AdamW, Muon, Sgd
from fastres.recipe.recipe import Recipe
from fastres.recipe.running import Eval, Lookahead, Record, Train
from fastres.recipe.schedules import Constant, Cosine, Knots, Linear, OneCycle, Step
from fastres.recipe.schema import schema
from fastres.recipe.sweeps import Point, Range, Search, Sweep

__all__ = [
    "PRESETS",
    "Adam",
    "AdamW",
    "Augment",
    "ColorJitter",
    "Constant",
    "Cosine",
    "Data",
    "Dino",
    "Distill",
    "EmpSsl",
    "Erasing",
    "Eval",
    "Extra",
    "Knots",
    "Linear",
    "Lookahead",
    "Mix",
    "Model",
    "Muon",
    "OneCycle",
    "Point",
    "Precision",
    "PseudoLabel",
    "RandomResizedCrop",
    "Range",
    "Recipe",
    "Record",
    "Search",
    "SelfSupervised",
    "Sgd",
    "Speednet",
    "Step",
    "Supervised",
    "Sweep",
    "Table",
    "Train",
    "Transfer",
    "schema",
]
