"""fuse() on networks that others have written: torchvision's and timm's, as they are built there, with drawn weights.

The log of `make test-slow PART=zoo` has each network's sites.
"""

import copy
from collections import Counter

import pytest
import torch
from fusion_nets import assert_close_to_fp64, results, shaken
from torch import nn

from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import fuse, fused_sites, unfuse

import_torchvision()
import timm  # noqa: E402 (imports torchvision)
import torchvision  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.zoo]

NETWORKS = {
    # Norms, and how many of them at least are in a site. All of them where every norm is followed by an activation or
    # an addition; norms before a gate (squeeze and excitation), a concatenation or a convolution stay as they are.
    "torchvision/resnet18": (20, 20),
    "torchvision/resnet34": (36, 36),
    "torchvision/resnet50": (53, 53),
    "torchvision/resnext50_32x4d": (53, 53),
    "torchvision/wide_resnet50_2": (53, 53),
    "torchvision/densenet121": (121, 121),
    "torchvision/googlenet": (57, 57),
    "torchvision/vgg11_bn": (8, 8),
    "torchvision/shufflenet_v2_x0_5": (56, 37),
    "torchvision/mnasnet0_5": (52, 45),
    "torchvision/mobilenet_v2": (52, 10),
    "torchvision/mobilenet_v3_small": (34, 5),
    "torchvision/efficientnet_b0": (49, 33),
    "timm/resnet10t": (14, 14),
    "timm/resnet14t": (19, 19),
    "timm/resnet18": (20, 20),
    "timm/resnet18d": (22, 22),
    "timm/resnet26d": (31, 31),
    "timm/resnet50": (53, 53),
    "timm/resnetaa50": (53, 53),
    "timm/resnetblur18": (20, 20),
    "timm/resnetrs50": (56, 40),
    "timm/resnest14d": (23, 23),
    "timm/res2net50_26w_4s": (85, 85),
    "timm/res2next50": (85, 85),
    "timm/seresnet18": (20, 12),
    "timm/legacy_seresnet18": (20, 20),
    "timm/ecaresnet26t": (31, 23),
    "timm/skresnet18": (36, 12),
    "timm/selecsls42": (41, 41),
    "timm/hrnet_w18_small": (91, 71),
    "timm/ghostnet_100": (80, 38),
    "timm/rexnet_100": (62, 13),
    # timm's BatchNormAct2d has its activation inside, and dla34's forward is mostly left alone.
    "timm/regnetx_002": (44, 0),
    "timm/efficientnet_b0": (49, 0),
    "timm/dla34": (37, 3),
}


def built(name: str) -> nn.Module:
    library, _, kind = name.partition("/")
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(kind, pretrained=False, num_classes=7)  # type: ignore[no-any-return]
    others = {"init_weights": True, "aux_logits": False} if kind == "googlenet" else {}
    return torchvision.models.get_model(kind, weights=None, num_classes=7, **others)  # type: ignore[no-any-return]


def undisturbed(model: nn.Module) -> nn.Module:
    """Without random numbers of its own, so that two forwards can be compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module).__name__ in ("StochasticDepth", "DropPath"):
            module.p = module.drop_prob = 0.0  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Sites, keys and modules; output, gradients and statistics of training against fp64; evaluation to the bit."""
    plain = shaken(undisturbed(built(name))).train()
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    keys, kinds, shown = list(fused.state_dict()), [type(module) for module in fused.modules()], repr(fused)
    assert fuse(fused) is fused
    sites = fused_sites(fused)
    there, least = NETWORKS[name]
    norms = {key for key, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)}
    found = [norm for site in sites for norm in site.norms]
    with capsys.disabled():
        forms = ", ".join(f"{count} {form}" for form, count in sorted(Counter(site.form for site in sites).items()))
        print(f" {len(found)} of {len(norms)} norms in {len(sites)} sites ({forms or 'none'})", end=" ")
    assert len(norms) == there and least <= len(found) == len(set(found)) and set(found) <= norms
    assert (list(fused.state_dict()), repr(fused)) == (keys, shown)

    x = torch.randn(2, 3, 64, 64)
    ours, theirs = results(fused, x), results(plain, x)
    truth = results(exact, x.double())
    assert list(ours) == list(truth)
    assert_close_to_fp64(ours, theirs, truth)
    assert torch.equal(fused.eval()(x), plain.eval()(x))

    unfuse(fused)
    assert [type(module) for module in fused.modules()] == kinds and fused_sites(fused) == []
    assert torch.equal(fused(x), plain(x))
