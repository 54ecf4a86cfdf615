"""environment.json: the machine and the versions that a run depends on."""

import json

from fastres.utils.json_files import Count, Entry, File
from fastres.utils.machine import environment_facts


class Gpu(Entry):
    """A GPU that torch can use."""

    name: str
    capability: str | None = None
    memory_bytes: Count | None = None
    driver: str | None = None


class Environment(File):
    """environment.json: the machine and the versions behind a run; None is what could not be found out."""

    fastres: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    """Whether the checkout's code differs from that commit."""
    python: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    triton: str | None = None
    numba: str | None = None
    numpy: str | None = None
    platform: str | None = None
    cpu_model: str | None = None
    isa: list[str] = []
    """Instruction sets that decide how fast a convolution is."""
    cores: Count | None = None
    usable_cores: Count | None = None
    torch_isa: str | None = None
    """What torch uses of them."""
    threads: Count | None = None
    cuda: str | None = None
    cudnn: Count | None = None
    memory_bytes: Count | None = None
    gpu_name: str | None = None
    """Of the first GPU."""
    gpus: list[Gpu] = []
    variables: dict[str, str] = {}
    """Environment variables that change what torch, its compilers, Numba or fastres do."""
    device: str | None = None
    """The one that is trained on."""

    @property
    def device_name(self) -> str | None:
        """Model of the CPU or GPU that is trained on."""
        return self.gpu_name if (self.device or "").startswith("cuda") else self.cpu_model


def environment(device: str | None = None) -> Environment:
    """The machine and the versions behind a run on `device`. Never raises."""
    facts = environment_facts() | ({} if device is None else {"device": device})
    return Environment.model_validate_json(json.dumps(facts))


def to_publish(environment: Environment) -> Environment:
    """For a file that is made to be shown: without `variables`, which hold paths of this machine."""
    return Environment(**{key: value for key, value in environment.given().items() if key != "variables"})
