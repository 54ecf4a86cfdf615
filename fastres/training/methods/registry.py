"""Which class trains by which table of a recipe."""

from typing import Any

from fastres.recipe import DinoConfig, DistillConfig, EmpSslConfig, PseudoLabelConfig, SupervisedConfig
from fastres.recipe.methods import MethodConfig
from fastres.training.methods.base import Method, Supervised
from fastres.training.methods.dino import Dino
from fastres.training.methods.distillation import Distillation
from fastres.training.methods.emp_ssl import EmpSsl
from fastres.training.methods.pseudo_label import PseudoLabel

METHODS: dict[type[MethodConfig], type[Method[Any]]] = {
    SupervisedConfig: Supervised,
    DistillConfig: Distillation,
    PseudoLabelConfig: PseudoLabel,
    DinoConfig: Dino,
    EmpSslConfig: EmpSsl,
}


def method_of(config: MethodConfig) -> Method[Any]:
    """The method that `config`, the recipe's table, describes."""
    return METHODS[type(config)](config)
