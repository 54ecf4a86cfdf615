"""Fusing somebody else's model changes how it computes, not what; and the model comes back."""

import copy
import importlib.util
import re

import pytest
import torch

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed: pip install timm", allow_module_level=True)

from examples import fuse_timm

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_fused_model_trains_alike_and_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    fuse_timm.main(["--steps", "3", "--batch-size", "8", "--image-size", "32", "--device", "cpu"])
    out = capsys.readouterr().out
    # The stem, eight blocks with two each, of which three have a BatchNorm in their skip too.
    assert "resnet18: 17 sites fused, with 20 of 20 BatchNorms" in out
    assert "unfused: 0 sites left, class timm.models.resnet.ResNet" in out
    assert "same keys as before: True" in out
    losses = re.findall(r"(plain|fused): loss ([\d.]+) to ([\d.]+) in 3 steps", out)
    assert [name for name, _, _ in losses] == ["plain", "fused"]
    (_, *plain), (_, *fused) = losses
    assert [float(loss) for loss in fused] == pytest.approx([float(loss) for loss in plain], rel=1e-3)


def test_the_logits_agree() -> None:
    """As closely as fp32 allows: no further from fp64 than twice the plain model is, the project's criterion."""
    torch.manual_seed(0)
    plain = fuse_timm.timm.create_model("resnet18", num_classes=10)
    exact, fused = copy.deepcopy(plain).double(), fuse_timm.fuse(copy.deepcopy(plain))
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        truth = exact(images.double())
        error, ours = ((model(images) - truth).abs().max().item() for model in (plain, fused))
    assert ours <= 2 * error
    assert fuse_timm.largest_difference(fused.eval(), plain.eval(), images) == 0
