"""Training steps in plain PyTorch, written as one would without fastres, for `step_timings.py` to compare with.

All of them train the same network, of stock layers (`nn.BatchNorm2d`, `F.relu`) in channels-last, on a set that lies on
the device as uint8. A step is:

1. gather the batch's images and labels by the rows of a permutation that is on the device too;
2. flip half of them and shift all by up to 4 pixels each way (edge pixels repeat), as one gather, drawn on the device;
   normalise;
3. forward under autocast (bf16) or in fp32 (convolutions in TF32, PyTorch's default), cross-entropy, correct guesses;
4. backward; fused SGD with momentum 0.9 and weight decay 1e-4, its rate a tensor on the device;
5. add loss and correct guesses to sums on the device.

Nothing waits for the device. The rivals differ in how this is launched: see RIVALS. The report's augmentation does more
than step 2; where ours uses it, as it does for the report's network, the rivals have less to do.
"""

import gc
import importlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WARM_UP = 3
"""Steps on the side stream before a capture, as PyTorch's notes on CUDA graphs have it."""


class Block(nn.Module):
    """A basic block (He et al. 2016) as torchvision writes it."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + skip)


class PlainResNet(nn.Module):
    """3×3 stem, stages of basic blocks of which all but the first halve the map, global average pool, classifier:
    float [N, 3, H, W] → logits [N, classes]."""

    def __init__(self, blocks: Sequence[int], channels: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        width = channels[0]
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        for stage, (count, out) in enumerate(zip(blocks, channels, strict=True)):
            for block in range(count):
                stages.append(Block(width, out, 2 if stage and not block else 1))
                width = out
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Work(nn.Module):
    """Steps 1 to 3: rows int64 [B] → mean loss, fp32, and the number of correct guesses.

    The set is a buffer: what is compiled with CUDA graphs would otherwise copy all of it at each call.
    """

    pixels: Tensor
    labels: Tensor
    along: Tensor

    def __init__(self, network: nn.Module, pixels: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype, self.side = network, dtype, pixels.shape[1]
        self.register_buffer("pixels", pixels)
        self.register_buffer("labels", labels)
        self.register_buffer("along", torch.arange(self.side, device=pixels.device))

    def augmented(self, rows: Tensor) -> Tensor:
        """Float [B, 3, H, W] in channels-last."""
        count, last = len(rows), self.side - 1
        down = torch.randint(-4, 5, (count, 1), device=rows.device)
        right = torch.randint(-4, 5, (count, 1), device=rows.device)
        flips = torch.rand(count, 1, device=rows.device) < 0.5
        across = torch.where(flips, last - self.along, self.along)
        y, x = (self.along + down).clamp(0, last), (across + right).clamp(0, last)
        pixels = self.pixels[rows[:, None, None], y[:, :, None], x[:, None, :]]
        return ((pixels.float() - 127.5) / 63.75).to(self.dtype).permute(0, 3, 1, 2)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        labels = self.labels[rows]
        with torch.autocast(rows.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.network(self.augmented(rows))
        logits = logits.float()
        return F.cross_entropy(logits, labels), (logits.detach().argmax(1) == labels).sum()


class Rival:
    """All of a training step but the way it is launched; a call enqueues `steps` steps."""

    def __init__(
        self, network: nn.Module, pixels: Tensor, labels: Tensor, batch: int, dtype: torch.dtype, steps: int
    ) -> None:
        device = pixels.device
        network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.work: Callable[[Tensor], tuple[Tensor, Tensor]] = Work(network, pixels, labels, dtype)
        self.device, self.batch, self.steps = device, batch, steps
        rate = torch.tensor(0.01, device=device)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, fused=True)
        self.sums = torch.zeros(2, device=device)
        self.images = len(pixels)
        self.order: tuple[Tensor, ...] = ()
        self.at = 0

    def rows(self) -> Tensor:
        """int64 [B]: those of the next batch; after the last of an epoch, of a new permutation."""
        if self.at == len(self.order):
            whole = self.images // self.batch * self.batch
            self.order = torch.randperm(self.images, device=self.device)[:whole].split(self.batch)
            self.at = 0
        self.at += 1
        return self.order[self.at - 1]

    def step(self, rows: Tensor) -> None:
        """Steps 1 to 5."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self.work(rows)
        loss.backward()
        self.optimizer.step()
        self.sums += torch.stack((loss.detach(), correct.float()))

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.step(self.rows())


class Eager(Rival):
    """Each operator launched from Python."""


class MaxAutotune(Rival):
    """Steps 1 to 3 and their backward compiled with mode="max-autotune", which times candidates for each matrix product
    and convolution and replays CUDA graphs of its own; the optimizer is called as it is. `backend`, where given, takes
    Inductor's place: for dry runs."""

    def __init__(self, *arguments: object, backend: str | None = None) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        options = {"mode": "max-autotune"} if backend is None else {"backend": backend}
        if backend is None:  # Inductor would print a table of candidates for each product and convolution
            importlib.import_module("torch._inductor.select_algorithm").PRINT_AUTOTUNE = False  # type: ignore[attr-defined]
        self.work = torch.compile(self.work, dynamic=False, fullgraph=True, **options)  # type: ignore[call-overload]

    def step(self, rows: Tensor) -> None:
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        super().step(rows)


class Graphed(Rival):
    """The whole eager step captured once in a CUDA graph and replayed; before each replay the batch's rows are copied
    to where the graph reads them. On a CPU it is the eager step."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.static = self.rows().clone()
        if self.device.type != "cuda":
            return
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                super().step(self.static)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)  # the capture makes gradients of its own
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()  # what an earlier measurement left, destroyed in mid-capture, would break this one
        try:
            with torch.cuda.graph(graph):
                super().step(self.static)
        finally:
            gc.enable()
        self.graph = graph

    def step(self, rows: Tensor) -> None:
        self.static.copy_(rows)
        if self.graph is None:
            super().step(self.static)
        else:
            self.graph.replay()


RIVALS: dict[str, Callable[..., Rival]] = {"eager": Eager, "graphed": Graphed, "max-autotune": MaxAutotune}
DRY_RIVALS: dict[str, Callable[..., Rival]] = {**RIVALS, "max-autotune": partial(MaxAutotune, backend="aot_eager")}
