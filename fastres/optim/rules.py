"""The update rules: what an optimizer of the recipe builds, and what the library asks of it besides.

To add one: write its table in recipe/optimizers.py, and its rule here; for an optimizer of torch that is the call that
makes it, and its work. `tests/update_options.py` has the list from which the tests of all of them derive.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from fastres.layers.convolution import HAS_AMX
from fastres.optim.groups import NONE, Factors, Group, Parameters, group_names, group_rates, parameter_groups
from fastres.optim.muon import Muon
from fastres.recipe import AdamConfig, AdamWConfig, MuonConfig, SgdConfig
from fastres.recipe.optimizers import ElementwiseConfig, OptimizerConfig
from fastres.utils.registry import Registry

Config = TypeVar("Config", bound=OptimizerConfig)
Elementwise = TypeVar("Elementwise", bound=ElementwiseConfig)


class UpdateRule(ABC, Generic[Config]):
    """What there is to know of a kind of optimizer with the options of its table, `config`."""

    renormalise_every = 0
    """Steps after which `renormalise` is due; 0: never."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def build(self, network: nn.Module, parameters: Parameters, lr_factors: Factors) -> Optimizer:
        """The optimizer of `parameters`, which are some of `network`'s; `lr_factors` multiplies their rates."""

    @abstractmethod
    def work(self, parameters: Parameters) -> tuple[int, int]:
        """Operations and bytes of a step, all in fp32, without products of matrices."""

    def products(self, device: torch.device) -> str | None:
        """The precision of a step's products of matrices on `device`; None where it has none."""
        return None

    def renormalise(self, optimizer: Optimizer) -> None:
        """Bring weights back to their initial norms, where the rule does so."""

    def restart(self, optimizer: Optimizer) -> None:
        """Make `optimizer` what a new one is for the weights as they are now. Its tensors stay where they are, filled
        with zeros: a momentum of 0 does in the next step what none at all does in the first."""
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()


RULES: Registry[type[OptimizerConfig], type[UpdateRule[Any]]] = Registry("update rule")
"""By the recipe's table."""


def rule_of(options: OptimizerConfig) -> UpdateRule[Any]:
    """The rule that `options` describes. Raises LookupError where none is registered for its table."""
    return RULES[type(options)](options)


def build_optimizer(options: OptimizerConfig, network: nn.Module, lr_factors: Factors = NONE) -> Optimizer:
    """The optimizer for all trainable parameters of `network`, whose rates `lr_factors` multiplies; of torch's, the
    fused implementations: one pass over memory.

    CPU time of a step on an AMD EPYC, 4.9 million parameters: SGD 6.6 ms fused, 8.4 foreach, 8.8 as a loop; AdamW 7.7,
    23 and 22. Muon with 3 Newton–Schulz steps adds 110 ms to the 1,170 of the report network's step at batch 128.
    """
    return rule_of(options).build(network, group_names(network), lr_factors)


class ElementwiseRule(UpdateRule[Elementwise]):
    """A rule that treats every value alike, by an optimizer of torch."""

    def build(self, network: nn.Module, parameters: Parameters, lr_factors: Factors) -> Optimizer:
        rates = group_rates(network, self.config)
        return self.optimizer(parameter_groups(parameters, self.config, rates, lr_factors))

    def work(self, parameters: Parameters) -> tuple[int, int]:
        count = sum(parameter.numel() for parameter, _ in parameters)
        operations, values = self.work_per_value()
        return operations * count, 4 * values * count

    @abstractmethod
    def optimizer(self, groups: list[Group]) -> Optimizer:
        """Torch's optimizer of `groups`, each of which has its rate and its decay."""

    @abstractmethod
    def work_per_value(self) -> tuple[int, int]:
        """Operations for a value of the parameters, and values read and written."""


@RULES.register(SgdConfig)
class SgdRule(ElementwiseRule[SgdConfig]):
    """SGD with momentum."""

    def optimizer(self, groups: list[Group]) -> Optimizer:
        options = self.config
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov, fused=True)

    def work_per_value(self) -> tuple[int, int]:
        options, momentum = self.config, self.config.momentum > 0
        operations = 2 * (options.weight_decay > 0) + 2 * momentum + 2 * options.nesterov + 2
        return operations, 5 if momentum else 3  # gradient, momentum and weight read, two written


@RULES.register(AdamConfig)
class AdamRule(ElementwiseRule[AdamConfig | AdamWConfig]):
    """Adam."""

    kind: type[torch.optim.Adam] = torch.optim.Adam

    def optimizer(self, groups: list[Group]) -> Optimizer:
        beta1, beta2 = self.config.betas
        return self.kind(groups, lr=self.config.lr, betas=(beta1, beta2), eps=self.config.eps, fused=True)

    def work_per_value(self) -> tuple[int, int]:
        # Decay 2, first moment 3, second 4, its corrected root plus eps 3, update 3; weight, gradient and two moments
        # read, weight and moments written.
        return 15, 7


@RULES.register(AdamWConfig)
class AdamWRule(AdamRule):
    """Adam with decoupled weight decay."""

    kind = torch.optim.AdamW


@RULES.register(MuonConfig)
class MuonRule(UpdateRule[MuonConfig]):
    """Muon for the filters, and the rule of its auxiliary for everything else."""

    def __init__(self, config: MuonConfig) -> None:
        super().__init__(config)
        self.auxiliary, self.renormalise_every = rule_of(config.auxiliary), config.renormalise_every

    def build(self, network: nn.Module, parameters: Parameters, lr_factors: Factors) -> Optimizer:
        options, (filters, others) = self.config, _divided(parameters)
        both: list[Optimizer] = []
        if filters:
            groups = parameter_groups(filters, options, {}, lr_factors)
            steps = options.newton_schulz_steps
            both.append(Muon(groups, options.lr, options.momentum, options.nesterov, newton_schulz_steps=steps))
        if others:
            both.append(self.auxiliary.build(network, others, lr_factors))
        return both[0] if len(both) == 1 else ChainedOptimizer(*both)

    def work(self, parameters: Parameters) -> tuple[int, int]:
        filters, others = _divided(parameters)
        count = sum(weight.numel() for weight, _ in filters)
        operations, moved = self.auxiliary.work(others)
        # Of a filter's value: momentum 2, Nesterov 2, decay 1, update 2; gradient, momentum and weight read, two
        # written.
        return operations + (5 + 2 * self.config.nesterov) * count, moved + 4 * 5 * count

    def products(self, device: torch.device) -> str | None:
        return "bf16" if device.type == "cuda" or HAS_AMX else "fp32"

    def renormalise(self, optimizer: Optimizer) -> None:
        for part in _parts(optimizer):
            if isinstance(part, Muon):
                part.renormalise()

    def restart(self, optimizer: Optimizer) -> None:
        for part in _parts(optimizer):
            if isinstance(part, Muon):
                part.restart()
            else:
                self.auxiliary.restart(part)


class ChainedOptimizer(Optimizer):
    """Optimizers of disjoint parameters as one, such as Muon and its auxiliary: `param_groups` are those of all."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of each; `closure` computes gradients anew before, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of all, in order."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        # Each optimizer has made its groups anew.
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def _divided(parameters: Parameters) -> tuple[Parameters, Parameters]:
    """Filters, and the others."""
    filters = [(parameter, role) for parameter, role in parameters if role == "filters"]
    return filters, [(parameter, role) for parameter, role in parameters if role != "filters"]


def _parts(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    return optimizer.optimizers if isinstance(optimizer, ChainedOptimizer) else (optimizer,)
