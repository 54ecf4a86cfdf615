"""Published results of others on CIFAR-10, which `fastres bench pareto` draws beside its own.

Their seconds are those of a single GPU by the authors' own clocks, most of which leave compilation and the opening of
the data out. None of them publishes a training rate, so that none has a place on an axis of images a second.
"""

from fastres.report.pareto import Record

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Of CIFAR-10, in its order, which is the alphabet's."""


_AIRBENCH = "https://github.com/KellerJordan/cifar10-airbench"
_ROWS = (
    ("cifar10-speedrun", 0.94008, 2.015, "A100", 2000, "https://github.com/hiverge/cifar10-speedrun"),
    ("airbench94_muon", 0.9401, 2.59, "A100", 200, _AIRBENCH),
    ("hlb-CIFAR10", 0.94, 6.3, "A100", 25, "https://github.com/tysam-code/hlb-CIFAR10"),
    ("cifar10-fast", 0.941, 26.0, "V100", 50, "https://myrtle.ai/learn/how-to-train-your-resnet/"),
    ("airbench96_faster", 0.96, 27.3, "A100", 200, _AIRBENCH),
    ("standard ResNet-18", 0.96, 420.0, "A100", None, _AIRBENCH),
)
RECORDS = tuple(Record.model_validate(dict(zip(Record.model_fields, row, strict=True))) for row in _ROWS)
