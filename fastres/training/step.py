"""One optimisation step: forward, loss, backward, clip, optimizer, schedule, average."""

import copy
import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.engine.compile import Compiled
from fastres.engine.precision import autocast
from fastres.optim import Lookahead, build_optimizer, factor, fading, rule_of, total_steps
from fastres.recipe import Recipe
from fastres.training.gradient_check import first_step
from fastres.training.methods.base import Method
from fastres.training.methods.registry import method_of
from fastres.training.methods.transfer import frozen_norms, rate_factors
from fastres.training.state import check_alike, optimizer_state
from fastres.utils.tensor_files import all_finite

UNREAD = {
    *("seed", "epochs", "batch_size", "drop_last", "grad_clip", "ema", "lookahead"),
    *("best", "early_stopping", "checkpoint_seconds"),
}
"""Fields of `recipe.train` that the compiled function cannot read: a change of these compiles nothing anew. The batch's
shape is in the graph's key by itself; clipping and averages come after the function."""


def settings_of_graph(recipe: Recipe) -> str:
    """What the compiled function may read of a recipe, for the key of its graph: model, method and `train`, but for
    UNREAD and for where the teacher of a distillation comes from (`Method.graph_key` has its model)."""
    tables = {
        "model": recipe.model.model_dump(),
        "method": recipe.method.model_dump(exclude={"teacher"}),
        "train": recipe.train.model_dump(exclude=UNREAD),
    }
    return json.dumps(tables, sort_keys=True)


class StepVariant(NamedTuple):
    """Additional work of a step, beyond that of all steps. Steps of one phase do the same work, on other numbers."""

    frozen: bool
    """Rates that had to fade to 0 have: what they belong to needs no gradients any more."""
    renormalises: bool
    """Weights are brought back to their norms, as Muon's filters are."""
    exchanges: bool
    """Lookahead's slow weights move."""


class Step:
    """Everything that changes from step to step, and the change.

    Weights, BN statistics, loss and optimizer stay in fp32; under bf16 and fp16 autocast runs convolutions and what
    lies between them in that type. `seed` and the step number decide all randomness (dropout): no generator is saved.

    A call is `prepare`, which is the host's part, and `update`, the device's. `update` alone can be captured and
    replayed, after `keep_hyperparameters_on_device`.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        steps_per_epoch: int,
        device: torch.device,
        method: Method[Any] | None = None,
        targets: Tensor | None = None,
    ) -> None:
        options = recipe.train
        self.network, self.recipe, self.steps_per_epoch, self.device = network, recipe, steps_per_epoch, device
        self.method, self._frozen_norms = method or method_of(recipe.method), frozen_norms(network)
        self.steps = total_steps(options.epochs, steps_per_epoch)
        self._targets = targets  # fp32 [labels, classes], where labels stand for probabilities
        self._classes = None if targets is None else targets.argmax(1)
        self.seed = options.seed  # not read from the recipe in a step: `restart` gives another
        self.rule = rule_of(recipe.optimizer)
        lr_factors = rate_factors(self.method.backbone(network), recipe.transfer)
        self.optimizer = build_optimizer(recipe.optimizer, network, lr_factors)
        self.ema = self.method.average(network, recipe, self.steps)
        self.lookahead = None if options.lookahead is None else Lookahead(network, options.lookahead, self.steps)
        # fp16 has a smallest normal number of 6e-5: without scaling, small gradients vanish.
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
        self._first_scale = self.scaler.state_dict()
        shape = None if targets is None else targets.shape
        about = f"{settings_of_graph(recipe)} {self.method.graph_key} {shape}"
        self.loss_and_correct = Compiled(self._loss_and_correct, enabled=options.compile, network=network, about=about)
        self._frozen = False
        self._unchecked = self.loss_and_correct.active  # gradients of compiled code, which the first step looks at
        self._table: Tensor | None = None  # fp32 [steps, numbers]
        self._hyperparameters: Tensor | None = None  # fp32 [1, numbers], of the step that runs

    @property
    def averaged(self) -> nn.Module:
        """The network to evaluate and to keep: the moving average where there is one, else lookahead's slow weights."""
        average = self.ema or self.lookahead
        return self.method.backbone(self.network if average is None else average.network)

    # ------------------------------------------------------------------------------- what depends on the step's number

    def learning_rate(self, step: int) -> float:
        """The recipe's rate, `optimizer.lr`, as step `step` (counted from 0) uses it."""
        return self.recipe.optimizer.lr * self._factor(step)

    def _factor(self, step: int) -> float:
        return factor(self.recipe.schedule, step, self.steps_per_epoch, self.recipe.train.epochs)

    def hyperparameters(self, step: int) -> list[float]:
        """The rate of each of the optimizer's groups at `step`, then the share by which each average moves."""
        scheduled = self._factor(step)
        rates = []
        for group in self.optimizer.param_groups:
            fades = group["fades_after"]
            rates.append(group["initial_lr"] * (fading(step, self.steps_per_epoch, fades) if fades else scheduled))
        return rates + [average.fraction(step) for average in (self.ema, self.lookahead) if average is not None]

    def variant(self, step: int) -> StepVariant:
        """The additional work of step `step`, counted from 0."""
        fades = [group["fades_after"] for group in self.optimizer.param_groups if group["fades_after"]]
        return StepVariant(
            frozen=bool(fades) and all(fading(step, self.steps_per_epoch, epochs) == 0 for epochs in fades),
            renormalises=bool(every := self.rule.renormalise_every) and (step + 1) % every == 0,
            exchanges=self.lookahead is not None and self.lookahead.due(step),
        )

    @property
    def identical_steps(self) -> bool:
        """Whether steps that follow each other are alike, nearly all of them: none that comes every so often is
        different, and none draws from a generator that is seeded by its number."""
        periodic = self.rule.renormalise_every > 1 or self.lookahead is not None
        return not periodic and not self.recipe.model.dropout

    def keep_hyperparameters_on_device(self) -> None:
        """Let every step find its rates and shares in a table on the device, by a counter that is there too."""
        rows = [self.hyperparameters(step) for step in range(self.steps)]
        self._table = torch.tensor(rows, dtype=torch.float32).to(self.device)
        self._hyperparameters = torch.zeros_like(self._table[:1])
        self._attach()

    def _attach(self) -> None:
        """Make the groups' rates views of the numbers, where these are on the device, and Adam's steps capturable on
        CUDA: a checkpoint brings what it was there, where it was saved."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = self._hyperparameters is not None and self.device.type == "cuda"
        if self._hyperparameters is None:
            return
        for group, rate in zip(self.optimizer.param_groups, self._hyperparameters[0], strict=False):
            group["lr"] = rate
        # Adam warns of capturable groups whose step runs uncaptured, as the first ones do.
        for optimizer in getattr(self.optimizer, "optimizers", [self.optimizer]):
            optimizer._warned_capturable_if_run_uncaptured = True

    # ------------------------------------------------------------------------------------------------------ the step

    def __call__(
        self, step: int, images: Tensor, labels: Tensor, partners: Tensor | None = None, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Train on one batch: [B, 3, H, W] and int64 [B]; where views are compared, all views of the B images, [V·B, 3,
        H, W]. Of a mixed batch `partners` are the labels mixed in, int64 [B], and `weight`, fp32 [1], the own share.

        Returns the mean loss before the step (fp32) and the number of correct predictions (in a mixed batch one is
        correct by the share of the label that it names), both still on the device.
        """
        variant = self.prepare(step)
        counter = None if self._table is None else torch.tensor([step], device=self.device)
        return self.update(variant, images, labels, partners, weight, counter=counter, step=step)

    def prepare(self, step: int) -> StepVariant:
        """Seed, mode, what is differentiated: the host's part of `step` and others of its phase, which is returned."""
        if self.recipe.model.dropout:
            torch.manual_seed((self.seed << 32) + step)
        self.network.train()
        for norm in self._frozen_norms:
            norm.eval()
        variant = self.variant(step)
        if variant.frozen != self._frozen:
            self._frozen = variant.frozen
            for group in self.optimizer.param_groups:
                for parameter in group["params"] if group["fades_after"] else ():
                    parameter.requires_grad_(not variant.frozen)
        return variant

    def update(
        self,
        variant: StepVariant,
        images: Tensor,
        labels: Tensor,
        partners: Tensor | None = None,
        weight: Tensor | None = None,
        *,
        counter: Tensor | None = None,
        step: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The device's part of a call. Which step it is, is in `counter`, int64 [1] on the device, after
        `keep_hyperparameters_on_device`, and else in `step`."""
        self.optimizer.zero_grad(set_to_none=True)
        mixed = () if partners is None or weight is None else (partners, weight)
        compiled = self.loss_and_correct
        by_it = functools.partial(self.backward, functools.partial(compiled, variant=variant.frozen))
        captured = images.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._unchecked and not captured:
            eager = functools.partial(self.backward, self._loss_and_correct)
            loss, correct = first_step(self.network, compiled, by_it, eager, images, labels, *mixed)
            self._unchecked = False
        else:
            loss, correct = by_it(images, labels, *mixed)
        if self.recipe.train.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.train.grad_clip, foreach=True)
        averaging_weights = self._apply_hyperparameters(counter, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if variant.renormalises:
            self.rule.renormalise(self.optimizer)
        if variant.exchanges and self.lookahead is not None:
            self.lookahead.exchange(self.network, averaging_weights[-1])
        if self.ema is not None:
            self.ema.update(self.network, averaging_weights[0])
        return loss.detach(), correct

    def backward(self, function: Callable[..., tuple[Tensor, Tensor]], *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and correct predictions by `function`; the loss's gradients then lie in the network, scaled."""
        loss, correct = function(*batch)
        self.scaler.scale(loss).backward()
        return loss, correct

    def _apply_hyperparameters(self, counter: Tensor | None, step: int | None) -> list[Any]:
        """Give each group its rate; returns the shares of the averages."""
        groups = self.optimizer.param_groups
        if self._table is not None and self._hyperparameters is not None and counter is not None:
            torch.index_select(self._table, 0, counter, out=self._hyperparameters)
            return list(self._hyperparameters[0, len(groups) :])
        assert step is not None  # without a table the host knows
        hyperparameters = self.hyperparameters(step)
        for group, rate in zip(groups, hyperparameters, strict=False):
            group["lr"] = rate
        return hyperparameters[len(groups) :]

    def _loss_and_correct(
        self, images: Tensor, labels: Tensor, partners: Tensor | None = None, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        with autocast(self.recipe.train.precision, self.device):
            average = None if self.ema is None else self.ema.network
            logits, compared = self.method.forward(self.network, images, len(labels), average)
        logits = logits.float()
        loss, correct = self._against(logits, labels)
        if compared is not None:
            loss = compared + loss
        if partners is not None and weight is not None:
            # Cross-entropy is linear in its target: no dense targets are needed (Zhang et al. 2018, section 2).
            other, right = self._against(logits, partners)
            fraction = weight.squeeze()
            loss, correct = fraction * loss + (1 - fraction) * other, fraction * correct + (1 - fraction) * right
        return self.method.loss(images, logits, loss), correct

    def _against(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and how many predictions name the label, or what is most probable of its target."""
        smoothing, guesses = self.recipe.train.label_smoothing, logits.detach().argmax(1)
        if self._targets is None or self._classes is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing), (guesses == labels).sum()
        targets, classes = self._targets[labels], self._classes[labels]
        return F.cross_entropy(logits, targets, label_smoothing=smoothing), (guesses == classes).sum()

    def is_finite(self) -> bool:
        """Whether all weights and statistics are finite; waits for the device."""
        averages = [average.network for average in (self.ema, self.lookahead) if average is not None]
        networks = [self.network, *averages]
        return all_finite(tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))

    def restart(self, network: nn.Module, seed: int) -> None:
        """Become what Step(network, …) is with `seed` as `train.seed`: the weights of `network`, an optimizer without a
        past, averages that start there. All tensors stay where they are, and with them what is compiled for them.
        `network` is left as it is, and may lie on another device and in another memory layout."""
        self.seed = seed
        self.network.load_state_dict(network.state_dict())
        for average in (self.ema, self.lookahead):
            if average is not None:
                average.network.load_state_dict(self.network.state_dict())
        self.optimizer.zero_grad(set_to_none=True)
        self.rule.restart(self.optimizer)  # after the weights: Muon looks at them
        self.scaler.load_state_dict(self._first_scale)

    def __getstate__(self) -> dict[str, Any]:
        """What is serialised with the guards of a compiled step: no optimizer, as a resumed Adam cannot be loaded."""
        return {**vars(self), "optimizer": None}

    def state(self) -> dict[str, Any]:
        """The state that an exact resume needs, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "compiled": self.loss_and_correct.active,
            "ema": None if self.ema is None else self.ema.network.state_dict(),
            "lookahead": None if self.lookahead is None else self.lookahead.network.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave, by copying: the weights' memory layout stays, and nothing of `state` is kept.

        Raises ValueError, or whatever a dictionary of anything makes its reader raise, where something else gave it.
        """
        for part, own in self.state().items():
            if part != "optimizer":
                check_alike(own, state[part])
        self.network.load_state_dict(state["network"])
        # An optimizer keeps the tensors that it is given: not views of a file, which others may cut short.
        self.optimizer.load_state_dict(optimizer_state(self.optimizer, copy.deepcopy(state["optimizer"])))
        self._attach()
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.network.load_state_dict(state["ema"])
        if self.lookahead is not None:
            self.lookahead.network.load_state_dict(state["lookahead"])
