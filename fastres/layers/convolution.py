"""A convolution that becomes a matrix product where the CPU's library has no good kernel for it.

With AMX a core multiplies bf16 matrices ten times as fast as with AVX512, and then oneDNN's convolutions with many
channels on small maps fall behind: reordering the weights and the small map dominate. Measured on 2 cores (batch 128,
ms for output, input gradient, weight gradient; the products compiled, with their copies):

    512 → 512 on 4×4:                 convolution 12.1 + 12.7 + 37.2    product 4.7 + 4.7 + 10.2
    256 → 512, stride 2, 8×8 → 4×4:   convolution  4.9 +  7.8 + 19.7    product 2.5 + 2.6 +  4.5
    128 → 256, stride 2, 16×16 → 8×8: convolution  2.8 +  3.6 +  8.4    product 2.4 + 3.3 +  4.7
    256 → 256 on 8×8:                 convolution  3.6 +  3.4 + 11.1    product 5.0 + 4.3 +  7.8

The last line is even, which is why the choice depends on the shape: at stride 1 a 3×3 product copies each pixel nine
times, and larger maps have more pixels to copy for the same weights.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.layers.converters import NotScriptable
from fastres.layers.tracing import as_node, is_traced


def _has_amx() -> bool:
    """Whether this CPU multiplies bf16 tiles (AMX), and oneDNN was not told to leave that alone."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return ("AMX" in limit or limit in ("ALL", "DEFAULT")) and bool(torch.cpu._is_amx_tile_supported())


HAS_AMX = _has_amx()


class Conv2d(NotScriptable, nn.Conv2d):
    """torch's Conv2d for square kernels without bias, padded by half a kernel: same parameters, same mathematics. Under
    torch.fx it is one node.

    bf16 activations on a CPU with AMX take the matrix product where `product_pays`. The choice depends on machine, type
    and shape alone, never on a measurement: the same run has the same bits.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] → [N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉]."""
        if is_traced(x):
            node: Tensor = as_node(self, x)
            return node
        stride = self.stride[0]
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and HAS_AMX and product_pays(x, stride):
            y: Tensor = ProductConvolution.apply(x, self.weight.to(x.dtype), stride)
            return y
        if stride_is_unsafe(x, self.weight.shape[2], stride):
            return F.conv2d(x[:, :, ::stride, ::stride], self.weight)
        return super().forward(x)


def stride_is_unsafe(x: Tensor, kernel: int, stride: int) -> bool:
    """Whether oneDNN must be given every `stride`-th pixel of x [N, C, H, W] instead of a stride, which is the same.

    Its kernels for the weight gradient of a strided 1×1 convolution (`jit_1x1` for AVX512, `jit_avx2_1x1`, in torch
    2.13) write beside their buffers where C is below their vectors' 16 or 8 floats, AVX512's with two threads: the
    process crashes, or never comes back. On every CPU, as bits must not depend on the CPU or on ONEDNN_MAX_CPU_ISA.
    """
    return x.device.type == "cpu" and kernel == 1 and stride > 1 and x.shape[1] < 16


def product_pays(x: Tensor, stride: int) -> bool:
    """Whether the shape is one where products win (see the table above), and one that they can do."""
    channels, height, width = x.shape[1:]
    positions = (height // stride) * (width // stride)
    whole = height % stride == 0 and width % stride == 0
    return whole and channels >= 128 and positions <= (64 if stride > 1 else 16)


class ProductConvolution(torch.autograd.Function):
    """Convolution as products of the patches ("im2col") with the weights; stride may be anything that divides the map.

    apply(x [N, C, H, W], weight [O, C, k, k] of one floating type, stride) → [N, O, H/stride, W/stride]. Sums over a
    patch are the product's own; in the input's gradient the k² overlapping patches are added in fp32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """The output, in the memory layout N, H, W, O."""
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        patches = _patches(x, weight.shape[2], stride)
        y = patches.flatten(0, 2) @ _matrix(weight).t()
        return y.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        outputs, channels, kernel, _ = weight.shape
        of_output = gradients[0].permute(0, 2, 3, 1)
        rows = of_output.reshape(-1, outputs)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_patches = (rows @ _matrix(weight)).view(*of_output.shape[:3], kernel, kernel, channels)
            of_x = _add_patches(of_patches, ctx.stride).to(x.dtype).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            products = rows.t() @ _patches(x, kernel, ctx.stride).flatten(0, 2)
            of_weight = products.view(outputs, kernel, kernel, channels).permute(0, 3, 1, 2)
        return of_x, of_weight, None


def _matrix(weight: Tensor) -> Tensor:
    """[O, C, k, k] → [O, k·k·C]; a view where the weight is channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _patches(x: Tensor, kernel: int, stride: int) -> Tensor:
    """[N, C, H, W] → [N, h, w, k·k·C], each position's patch in one row."""
    reach = kernel // 2
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, reach, reach, reach, reach))
    windows = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # [N, h, w, C, k, k]
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)


def _add_patches(patches: Tensor, stride: int) -> Tensor:
    """The adjoint of `_patches`, a gather instead of a scatter: [N, h, w, k, k, C] → fp32 or fp64 [N, H, W, C].

    Pixel y = s·u + r lies in the patches of output row u + (r + k//2 − i)/s for each kernel row i where that is whole.
    """
    count, height, width, kernel, _, channels = patches.shape
    reach = kernel // 2
    padded = F.pad(patches, (0, 0, 0, 0, 0, 0, kernel, kernel, kernel, kernel))
    wide = torch.promote_types(patches.dtype, torch.float32)

    def taps(rest: int) -> list[tuple[int, int]]:
        """Kernel position and shift of the output position, for pixels that leave `rest` modulo the stride."""
        return [(i, (rest + reach - i) // stride) for i in range(kernel) if (rest + reach - i) % stride == 0]

    quarters = []
    for row in range(stride):
        for column in range(stride):
            total = torch.zeros(count, height, width, channels, dtype=wide, device=patches.device)
            for i, down in taps(row):
                for j, right in taps(column):
                    shifted = padded[:, kernel + down :, kernel + right :, i, j]
                    total = total + shifted[:, :height, :width]
            quarters.append(total)
    pixels = torch.stack(quarters, dim=3).view(count, height, width, stride, stride, channels)
    return pixels.permute(0, 1, 3, 2, 4, 5).reshape(count, height * stride, width * stride, channels)
