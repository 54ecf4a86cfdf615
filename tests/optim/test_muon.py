"""Batched Muon against one matrix at a time, in fp64; its pieces against steps done by hand."""

import pytest
import torch
from torch import Tensor, nn
from update_options import batch, recipe, step_for

from fastres.optim import Muon, build_optimizer
from fastres.optim.muon import COEFFICIENTS, newton_schulz, orthogonalise
from fastres.optim.rules import ChainedOptimizer
from fastres.recipe import MuonConfig as Options

SHAPES = [(4, 3, 3, 3), (8, 4, 3, 3), (8, 4, 3, 3), (8, 4, 1, 1), (16, 2, 1, 1), (2, 30, 1, 1), (5, 7)]


def one_matrix(update: Tensor, steps: int) -> Tensor:
    """The iteration as the article writes it, on one matrix, in fp64."""
    a, b, c = COEFFICIENTS
    x = update.double().flatten(1)
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x.view(update.shape)


@pytest.mark.parametrize("padding", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_all_at_once_against_one_at_a_time(padding: float, channels_last: bool, steps: int) -> None:
    torch.manual_seed(0)
    updates = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    if channels_last:
        updates = [u.to(memory_format=torch.channels_last) if u.ndim == 4 else u for u in updates]
    for update, result in zip(updates, orthogonalise(updates, steps, padding=padding), strict=True):
        assert result.shape == update.shape
        # fp64 rounds by 1e-16; five steps amplify by at most 3.4445⁵ = 485, and sums have up to 36 terms.
        assert torch.allclose(result, one_matrix(update, steps), atol=1e-11)


def test_in_fp32_and_where_the_matrix_has_small_singular_values() -> None:
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(16, 16))[0], torch.linalg.qr(torch.randn(200, 16))[0]
    update = left @ torch.diag(torch.logspace(0, -4, 16)) @ right.T
    found = orthogonalise([update], 5)[0]
    expected = one_matrix(update, 5)
    # fp32: 6e-8 of the largest entries of XXᵀ, amplified by 485² where its powers alone are carried. On a CPU with AMX
    # the products are in bf16, which rounds by 2e-3, amplified in part.
    tolerance = 0.3 if newton_schulz(torch.eye(2)[None], 1).dtype == torch.bfloat16 else 0.02
    assert (found - expected).abs().max() < tolerance


def test_singular_values_end_near_one_and_zeros_stay_zero() -> None:
    torch.manual_seed(0)
    square, tall, nothing = torch.randn(20, 20), torch.randn(64, 3, 3, 3), torch.zeros(6, 2, 3, 3)
    results = orthogonalise([square, tall, nothing], 5)
    for result in results[:2]:
        values = torch.linalg.svdvals(result.flatten(1))
        # The article's 0.3, and a smallest singular value of a random square matrix that has not quite arrived.
        assert 0.3 < values.min() <= values.max() < 1.35
    assert torch.equal(results[2], nothing)


def test_three_steps_by_hand() -> None:
    """Nesterov's momentum, decay, rate: written out for one filter beside another."""
    torch.manual_seed(0)
    for nesterov in (True, False):
        weights = [nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.float64)) for _ in range(2)]
        optimizer = Muon(weights, lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.5, newton_schulz_steps=3)
        expected, buffer = weights[0].detach().clone(), torch.zeros(4, 3, 3, 3, dtype=torch.float64)
        for _ in range(3):
            gradient = torch.randn_like(expected)
            weights[0].grad, weights[1].grad = gradient.clone(), torch.randn_like(expected)
            optimizer.step()
            buffer = 0.8 * buffer + gradient
            update = gradient + 0.8 * buffer if nesterov else buffer
            expected = expected * (1 - 0.1 * 0.5) - 0.1 * one_matrix(update, 3)
        assert torch.allclose(weights[0].detach(), expected, atol=1e-11)  # as above


def test_a_rate_that_is_a_tensor_means_the_same() -> None:
    results = []
    for lr in (0.1, torch.tensor(0.1)):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        optimizer = Muon([weight], lr=lr, weight_decay=0.5)
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        results.append(weight.detach())
    assert torch.allclose(*results, atol=1e-6)  # 0.1 in fp32 and in fp64


def test_renormalising_brings_filters_back_to_their_initial_norms() -> None:
    step = step_for(recipe("muon"))  # every 3 steps
    filters = [weight for weight in step.network.parameters() if weight.requires_grad and weight.ndim == 4]
    initial = [weight.norm().item() for weight in filters]
    for number in range(6):
        before = [weight.detach().clone() for weight in filters]
        step(number, *batch(number))
        norms = [weight.norm().item() for weight in filters]
        if number % 3 == 2:
            # A norm over some hundred fp32 values, and one product.
            assert norms == pytest.approx(initial, rel=1e-5)
        else:
            assert norms != pytest.approx(initial, rel=1e-3)
        assert not any(torch.equal(old, new) for old, new in zip(before, filters, strict=True))


def test_filters_go_to_muon_and_the_rest_to_the_auxiliary() -> None:
    step = step_for(recipe("muon"))
    assert isinstance(step.optimizer, ChainedOptimizer)
    muon, auxiliary = step.optimizer.optimizers
    names = {id(parameter): name for name, parameter in step.network.named_parameters()}
    taken = [{names[id(p)] for group in part.param_groups for p in group["params"]} for part in (muon, auxiliary)]
    assert taken[0] == {f"group{group}.conv{conv}.weight" for group in (1, 2) for conv in (1, 2)}
    assert taken[1] == {"whiten.bias", "fc.weight"} | {f"group{g}.norm{n}.bias" for g in (1, 2) for n in (1, 2)}


def test_decoupled_decay_is_the_same_at_any_rate() -> None:
    for lr in (0.1, 0.4):
        network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))
        optimizer = build_optimizer(Options(lr=lr, weight_decay=0.01, decouple_decay=True), network)
        weight = network[0].weight
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        # One fp32 product.
        assert torch.allclose(weight, before * 0.99, rtol=1e-6)


def test_what_has_one_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="matrices and filters"):
        Muon([nn.Parameter(torch.zeros(3))])


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    """As Lightning's trainers step: all of forward and backward is in the closure."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(Options(), network)
    assert isinstance(optimizer, ChainedOptimizer)
    before, calls = [parameter.detach().clone() for parameter in network.parameters()], []

    def closure() -> float:
        optimizer.zero_grad()
        loss = network(torch.randn(2, 3, 3, 3)).square().sum()
        loss.backward()
        calls.append(loss.item())
        return calls[-1]

    assert optimizer.step(closure) == calls[0] and len(calls) == 1
    # The convolution's bias comes before a BN, which takes it away: its gradient is 0 but for rounding.
    changed = [not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert all(changed[:1] + changed[3:])


def test_muon_takes_convolutions_alone_of_other_peoples_networks() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(Options(), network)
    assert isinstance(optimizer, ChainedOptimizer)
    first = optimizer.optimizers[0]
    assert isinstance(first, Muon)
    assert [weight.shape for group in first.param_groups for weight in group["params"]] == [(4, 3, 3, 3)]
