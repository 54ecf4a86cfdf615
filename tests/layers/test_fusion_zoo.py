"""fuse() on networks that others have written: torchvision's and timm's, as they are built there, with drawn weights.

One small network for each of timm's families of convolutional networks, and some without a BatchNorm. The log of
`make test-slow PART=zoo` has each network's sites and those of each family.
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

NETWORKS = {
    # Norms, and how many of them at least are in a site: norms before a gate (squeeze and excitation), a concatenation,
    # a convolution, another activation (LeakyReLU, Hardswish, ReLU6) or at the end of a module of another kind stay as
    # they are.
    "torchvision/resnet18": (20, 20),
    "torchvision/resnet34": (36, 36),
    "torchvision/resnet50": (53, 53),
    "torchvision/resnext50_32x4d": (53, 53),
    "torchvision/wide_resnet50_2": (53, 53),
    "torchvision/densenet121": (121, 121),
    "torchvision/googlenet": (57, 57),
    "torchvision/inception_v3": (94, 94),
    "torchvision/vgg11_bn": (8, 8),
    "torchvision/shufflenet_v2_x0_5": (56, 37),
    "torchvision/shufflenet_v2_x1_0": (56, 37),
    "torchvision/mnasnet0_5": (52, 45),
    "torchvision/mnasnet1_0": (52, 45),
    "torchvision/mobilenet_v2": (52, 10),
    "torchvision/mobilenet_v3_small": (34, 11),
    "torchvision/mobilenet_v3_large": (46, 21),
    "torchvision/efficientnet_b0": (49, 33),
    "torchvision/efficientnet_v2_s": (110, 72),
    "torchvision/regnet_x_400mf": (71, 71),
    "torchvision/regnet_y_400mf": (53, 53),
    "torchvision/maxvit_t": (34, 23),
    "torchvision/mnasnet0_75": (52, 45),
    "torchvision/regnet_y_800mf": (47, 47),
    "timm/resnet10t": (14, 14),
    "timm/resnet18d": (22, 22),
    "timm/resnet50": (53, 53),
    "timm/resnetaa34d": (38, 38),
    "timm/resnetblur18": (20, 20),
    "timm/resnetrs50": (56, 40),
    "timm/ecaresnet26t": (31, 23),
    "timm/ecaresnetlight": (53, 37),
    "timm/ecaresnext26t_32x4d": (31, 23),
    "timm/seresnet18": (20, 12),
    "timm/seresnext26d_32x4d": (31, 23),
    "timm/resnext50_32x4d": (53, 53),
    "timm/wide_resnet50_2": (53, 53),
    "timm/resnetv2_18": (17, 17),
    "timm/legacy_seresnet18": (20, 20),
    "timm/legacy_seresnext26_32x4d": (29, 21),
    "timm/legacy_xception": (40, 32),
    "timm/skresnet18": (36, 36),
    "timm/skresnext50_32x4d": (85, 85),
    "timm/resnest14d": (23, 23),
    "timm/res2net50_26w_4s": (85, 85),
    "timm/res2next50": (85, 85),
    "timm/selecsls42": (41, 41),
    "timm/hrnet_w18_small": (91, 71),
    "timm/dla34": (37, 3),
    "timm/dla46_c": (48, 3),
    "timm/dla60_res2net": (95, 3),
    "timm/dpn48b": (54, 54),
    "timm/dpn68": (72, 72),
    "timm/densenet121": (121, 121),
    "timm/densenetblur121d": (123, 123),
    "timm/inception_v3": (94, 94),
    "timm/inception_v4": (149, 149),
    "timm/inception_resnet_v2": (204, 204),
    "timm/xception41": (84, 12),
    "timm/xception41p": (40, 40),
    "timm/vovnet39a": (39, 39),
    "timm/ese_vovnet19b_slim": (19, 19),
    "timm/eca_vovnet39b": (39, 39),
    "timm/ghostnet_050": (80, 38),
    "timm/ghostnetv2_100": (122, 38),
    "timm/ghostnetv3_050": (326, 34),
    "timm/repghostnet_050": (112, 86),
    "timm/rexnet_100": (62, 30),
    "timm/rexnetr_100": (62, 30),
    "timm/efficientnet_b0": (49, 42),
    "timm/efficientnet_es": (49, 43),
    "timm/efficientnet_lite0": (49, 9),
    "timm/efficientnet_cc_b0_4e": (49, 42),
    "timm/efficientnet_blur_b0": (49, 42),
    "timm/efficientnetv2_rw_t": (107, 102),
    "timm/gc_efficientnetv2_rw_t": (107, 102),
    "timm/tf_efficientnetv2_b0": (59, 54),
    "timm/mnasnet_050": (52, 45),
    "timm/semnasnet_050": (49, 42),
    "timm/mobilenetv1_100": (27, 0),
    "timm/mobilenetv2_035": (52, 10),
    "timm/mobilenet_edgetpu_v2_xs": (53, 47),
    "timm/mobilenetv4_conv_small_035": (46, 40),
    "timm/mobilenetv3_small_050": (34, 12),
    "timm/tf_mobilenetv3_small_minimal_100": (34, 29),
    "timm/fbnetc_100": (65, 59),
    "timm/fbnetv3_b": (87, 23),
    "timm/spnasnet_100": (64, 57),
    "timm/mixnet_s": (49, 44),
    "timm/tinynet_e": (31, 24),
    "timm/lcnet_035": (27, 0),
    "timm/lcnetv2_small": (37, 37),
    "timm/hardcorenas_a": (34, 14),
    "timm/regnetx_002": (44, 44),
    "timm/regnety_002": (44, 44),
    "timm/regnetz_005": (65, 61),
    "timm/regnetv_040": (66, 66),
    "timm/gernet_s": (45, 45),
    "timm/repvgg_a0": (61, 61),
    "timm/mobileone_s0": (226, 205),
    "timm/resnext26ts": (31, 31),
    "timm/gcresnext26ts": (31, 31),
    "timm/eca_resnext26ts": (31, 31),
    "timm/bat_resnext26ts": (63, 63),
    "timm/seresnext26ts": (31, 31),
    "timm/resnet33ts": (38, 38),
    "timm/botnet26t_256": (31, 31),
    "timm/halonet26t": (31, 31),
    "timm/lambda_resnet26t": (37, 31),
    "timm/haloregnetz_b": (68, 64),
    "timm/cs3darknet_focus_s": (31, 31),
    "timm/cspresnet50": (55, 13),
    "timm/darknet17": (16, 0),
    "timm/sedarknet21": (20, 0),
    "timm/cspnext_tiny": (33, 33),
    "timm/hgnet_tiny": (36, 33),
    "timm/hgnetv2_b0": (42, 30),
    "timm/repvit_m0_9": (106, 50),
    "timm/fastvit_t8": (70, 43),
    "timm/fasternet_t0": (17, 13),
    "timm/starnet_s050": (18, 0),
    "timm/shvit_s1": (73, 37),
    "timm/efficientvit_b0": (26, 0),
    "timm/efficientvit_m0": (112, 39),
    "timm/efficientvim_m1": (38, 13),
    "timm/lowformer_b0": (27, 0),
    "timm/efficientformerv2_s0": (75, 30),
    "timm/convnext_atto": (0, 0),
    "timm/rdnet_tiny": (0, 0),
    "timm/mambaout_femto": (0, 0),
    "timm/poolformer_s12": (0, 0),
    "timm/edgenext_xx_small": (0, 0),
    "timm/pvt_v2_b0": (0, 0),
    "timm/nfnet_l0": (0, 0),
    "timm/mixer_s32_224": (0, 0),
    "timm/vit_tiny_patch16_224": (0, 0),
    "timm/pit_ti_224": (0, 0),
    "timm/swin_tiny_patch4_window7_224": (0, 0),
    "timm/test_vit": (0, 0),
    "timm/test_nfnet": (0, 0),
}
SIDES = {
    "timm/bat_resnext26ts": 256,
    "timm/halonet26t": 256,
    "timm/haloregnetz_b": 224,
    "torchvision/inception_v3": 96,
    "torchvision/maxvit_t": 224,
    "timm/inception_v3": 96,
    "timm/inception_v4": 96,
    "timm/inception_resnet_v2": 96,
    "timm/botnet26t_256": 256,
    "timm/efficientvit_m0": 224,
    "timm/efficientformerv2_s0": 224,
    "timm/mixer_s32_224": 224,
    "timm/vit_tiny_patch16_224": 224,
    "timm/pit_ti_224": 224,
    "timm/swin_tiny_patch4_window7_224": 224,
    "timm/test_vit": 160,
}
"""Of the images, where 64 pixels are not enough or not what the network is made for."""
WITHOUT = {name for name, (norms, _) in NETWORKS.items() if norms == 0}
SAMPLE = ("timm/test_resnet", "timm/test_byobnet", "timm/test_efficientnet")
"""In `make test`, besides the networks of test_fusion.py: timm's own for tests, of all forms together."""
UNSAFE = {"timm/gernet_s", "timm/repvgg_a0", "timm/mobileone_s0", "timm/fastvit_t8"}
"""Their strided 1×1 convolutions of fewer than 16 channels let oneDNN overwrite memory: they run without it."""
SITES: dict[str, tuple[str, int]] = {}
"""Of each network that has been tested: its family and the number of its sites."""


def built(name: str) -> nn.Module:
    library, _, kind = name.partition("/")
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(kind, pretrained=False, num_classes=7)  # type: ignore[no-any-return]
    others = {"init_weights": True, "aux_logits": False} if kind in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(kind, weights=None, num_classes=7, **others)  # type: ignore[no-any-return]


def undisturbed(model: nn.Module) -> nn.Module:
    """Without random numbers of its own, so that two forwards can be compared."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
        if hasattr(module, "drop_rate"):  # of timm's calls of F.dropout
            module.drop_rate = 0.0  # type: ignore[assignment]
        if type(module).__name__ in ("StochasticDepth", "DropPath"):
            module.p = module.drop_prob = 0.0  # type: ignore[assignment]
    return model


def check(name: str) -> str:
    """Sites, keys and modules; output, gradients and statistics of training, to the bit or as close to fp64; evaluation
    to the bit; all of it again without sites. Returns a line on what was found."""
    plain = shaken(undisturbed(built(name))).train()
    fused, before = copy.deepcopy(plain), copy.deepcopy(plain)
    keys, kinds, shown = list(fused.state_dict()), [type(module) for module in fused.modules()], repr(fused)
    assert fuse(fused) is fused
    sites = fused_sites(fused)
    norms = {key for key, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)}
    found = [norm for site in sites for norm in site.norms]
    assert len(found) == len(set(found)) and set(found) <= norms
    if name in NETWORKS:
        there, least = NETWORKS[name]
        assert len(norms) == there and len(found) >= least
    assert (list(fused.state_dict()), repr(fused)) == (keys, shown)
    SITES[name] = (type(plain).__module__.removeprefix("timm.models.").removeprefix("torchvision.models."), len(sites))
    forms = ", ".join(f"{count} {form}" for form, count in sorted(Counter(site.form for site in sites).items()))

    side = SIDES.get(name, 64)
    x = torch.randn(2, 3, side, side)
    ours, theirs = results(fused, x), results(plain, x)
    assert list(ours) == list(theirs)
    same = all(map(torch.equal, ours.values(), theirs.values()))
    if not same:
        # Where three read a tensor, their gradients may be added in another order.
        assert_close_to_fp64(ours, theirs, results(before.double(), x.double()))
    fused.load_state_dict(plain.state_dict(), strict=True)
    y = plain.eval()(x)
    assert torch.equal(fused.eval()(x), y)

    unfuse(fused)
    assert [type(module) for module in fused.modules()] == kinds and fused_sites(fused) == []
    assert torch.equal(fused(x), y)
    how = "the same bits" if same else "as close to fp64"
    return f"{len(found)} of {len(norms)} norms in {len(sites)} sites ({forms or 'none'}), {how}"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample(name: str) -> None:
    check(name)
    assert SITES.pop(name)[1] > 5


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in UNSAFE:
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    line = check(name)
    with capsys.disabled():
        print(f" {line}", end=" ")


@pytest.mark.slow
@pytest.mark.zoo
def test_most_networks_have_sites(capsys: pytest.CaptureFixture[str]) -> None:
    if len(SITES) < len(NETWORKS):
        pytest.skip("not all networks ran, or not all of them hold")
    by_family: dict[tuple[str, str], list[int]] = {}
    for name, (family, sites) in SITES.items():
        by_family.setdefault((name.partition("/")[0], family), []).append(sites)
    with capsys.disabled():
        for (library, family), sites in sorted(by_family.items()):
            some = sum(count > 0 for count in sites)
            print(f"\n{library}, {family}: {some} of {len(sites)} networks with sites, {sum(sites)} sites", end="")
    timms = {name: count for name, (_, count) in SITES.items() if name.startswith("timm/")}
    assert len(SITES) - len(timms) >= 23
    assert len(timms) == 116
    assert len(timms.keys() - WITHOUT) == 103
    assert sum(count > 0 for count in timms.values()) >= 85
