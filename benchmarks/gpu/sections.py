"""A run of sections that ends in time, and what it puts on record."""

import importlib.util
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastres.utils.files import write_json

T = TypeVar("T")


class Failed(Exception):
    """A section ran to its end and found something wrong, which its text says."""


class Skipped(Exception):
    """A section has nothing to do here; its text says why."""


@dataclass
class Suite:
    """A run: its device, its time and what it has found."""

    device: torch.device
    minutes: float
    json: Path | None = None
    source: str = "shapes10"
    """Images for the sections that train: what a recipe's `data.source` takes."""
    began: float = field(default_factory=time.monotonic)
    report: dict[str, Any] = field(default_factory=dict)
    _until: float = float("inf")
    _figures: list[dict[str, Any]] = field(default_factory=list)
    _stores: tempfile.TemporaryDirectory[str] | None = None

    @property
    def dry(self) -> bool:
        """Whether this run only shows that the code runs."""
        return self.device.type != "cuda"

    def left(self) -> float:
        """Seconds until the running section, or the whole run, has to end."""
        return min(self.began + 60 * self.minutes, self._until) - time.monotonic()

    @property
    def root(self) -> str:
        """Folder of the prepared stores, for all sections of this run; it goes with the run."""
        if self._stores is None:
            self._stores = tempfile.TemporaryDirectory(prefix="gpu-suite-")
        return self._stores.name

    def record(self, figures: dict[str, Any]) -> None:
        """Add figures of the running section."""
        self._figures.append({**figures, "dry": True} if self.dry else figures)

    def close(self) -> None:
        """Remove what the run has prepared."""
        if self._stores is not None:
            self._stores.cleanup()

    def figures_of(self, name: str) -> list[dict[str, Any]]:
        """Records of the section `name` in this run; nothing where it has not run."""
        return self.report.get("sections", {}).get(name, {}).get("figures", [])

    def save(self) -> None:
        """Write the JSON, if one is wanted."""
        if self.json is not None:
            write_json(self.json, _finite(self.report))

    def say(self, text: str) -> None:
        """Progress, with the time left of the whole run."""
        left = self.began + 60 * self.minutes - time.monotonic()
        print(f"[{left:5.0f} s left] {text}", file=sys.stderr, flush=True)

    def needs_kernels(self) -> None:
        """Raise Skipped where Triton's kernels cannot be launched: in a dry run they need the interpreter."""
        from fastres.kernels.batch_norm.launch import INTERPRETED

        if self.dry and not INTERPRETED:
            raise Skipped("launches kernels: needs a GPU, or for a dry run TRITON_INTERPRET=1")

    def while_time(self, cases: Sequence[T]) -> Iterator[T]:
        """The cases, as long as another one like the last four fits into the time; what is left out goes on record.
        The JSON is saved after each."""
        took: list[float] = []
        for done, case in enumerate(cases):
            if self.left() < max(took[-4:], default=0.0):
                self.record({"left_out": [getattr(each, "name", str(each)) for each in cases[done:]]})
                self.say(f"    out of time: {done} of {len(cases)} done")
                return
            began = time.monotonic()
            yield case
            self.save()
            took.append(time.monotonic() - began)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become text."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Section:
    """A part of the suite."""

    run: Callable[[Suite], None]
    seconds: float
    """Estimated least cost on a GPU; with less time left it is skipped."""
    share: float
    """Of the time left when it begins, how much it may use; the last section of a run may use all."""

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (self.run.__doc__ or "").splitlines()[0]


SECTIONS: dict[str, Section] = {}


def requires(*modules: str) -> None:
    """Raise Skipped, naming the first of `modules` that cannot be imported."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise Skipped(f"needs {name}, which is not installed")


def section(name: str, *, seconds: float, share: float = 1.0) -> Callable[[Callable[[Suite], None]], Any]:
    """Register a function as a section, after those above it."""

    def register(run: Callable[[Suite], None]) -> Callable[[Suite], None]:
        SECTIONS[name] = Section(run, seconds, share)
        return run

    return register


def _absent(error: Exception) -> str | None:
    """The package for want of which a section has ended; None where that was not the reason, or it is our own."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    return name if name and name.split(".")[0] not in ("fastres", "benchmarks") else None


def run(suite: Suite, names: list[str]) -> int:
    """Run sections; returns the exit status."""
    suite.report.update(
        dry=suite.dry,
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        minutes=suite.minutes,
        device=str(suite.device),
        sections={},
    )
    suite.save()  # before the work, whether it can be written
    failed = False
    for name in names:
        part, left = SECTIONS[name], suite.left()
        entry: dict[str, Any] = {"status": "running", "figures": []}
        suite.report["sections"][name] = entry
        if left < (1 if suite.dry else part.seconds):
            entry.update(status="skipped", reason=f"needs about {part.seconds:.0f} s, {max(left, 0):.0f} s were left")
            suite.say(f"{name}: skipped, {entry['reason']}")
            suite.save()
            continue
        suite.say(f"{name}: {part.summary}")
        began = time.monotonic()
        share = 1.0 if name == names[-1] else part.share  # nobody waits behind the last one
        suite._figures, suite._until = entry["figures"], began + share * left
        try:
            part.run(suite)
            entry["status"] = "cut short" if any("left_out" in each for each in entry["figures"]) else "done"
        except Skipped as error:
            entry.update(status="skipped", reason=str(error))
        except Failed as error:
            entry.update(status="failed", reason=str(error))
        except Exception as error:  # the other sections run all the same
            if absent := _absent(error):
                entry.update(status="skipped", reason=f"needs {absent}, which is not installed")
            else:
                text = traceback.format_exc()
                entry.update(status="error", reason=f"{type(error).__name__}: {error}", traceback=text)
                print(text, file=sys.stderr)
        failed |= entry["status"] in ("failed", "error")
        suite._until = float("inf")
        entry["seconds"] = round(time.monotonic() - began, 3)
        suite.save()
    return 1 if failed else 0
