"""The tables that end a benchmark run, one for each suite. What they leave out is in the JSON."""

import textwrap
from collections.abc import Mapping
from typing import Any

from fastres.report.document import Table

Figures = Mapping[str, Mapping[str, Any]]

WIDTH = 100
_HEADINGS = ("case", "ours", "rival", "ratio (quartiles)", "ceiling", "memory (rival)")
PARTS = ("loader", "augmentation", "forward", "backward", "optimizer", "host gap")
"""Of an epoch's time, in the order of a step."""


def tables(figures: Figures) -> list[str]:
    """Lines of all suites' tables; below each the rivals and the ceilings."""
    lines: list[str] = []
    for suite in dict.fromkeys(entry["suite"] for entry in figures.values()):
        rows = {name: entry for name, entry in figures.items() if entry["suite"] == suite}
        compared = {name: entry for name, entry in rows.items() if "ratio" in entry}
        lines += ["", f"--- {suite.removeprefix('bench_')} ".ljust(WIDTH, "-")]
        if compared:
            cells = [_cells(name, entry) for name, entry in compared.items()]
            lines += Table(_HEADINGS, cells).for_terminal().split("\n")
            for what, key in (("rivals", "against"), ("ceilings", "ceiling"), ("per second", "unit")):
                lines += _footnotes(what, compared, key)
        split = with_parts(rows)
        if split:
            lines += ["", *parts_table(split)]
        for name, entry in rows.items():
            if name not in compared:
                lines += [name, *(f"    {key:<36} {_text(value)}" for key, value in entry.items() if key != "suite")]
    return lines


def with_parts(figures: Figures) -> dict[str, Mapping[str, Any]]:
    """Those of which it is known where an epoch's time goes."""
    return {name: entry for name, entry in figures.items() if "parts" in entry}


def parts_table(figures: Figures) -> list[str]:
    """Parts of an epoch's time, in percent of its seconds."""
    header = ["case", "s/epoch", "images/s"]
    header += [part.replace("augmentation", "augm.").replace("optimizer", "optim.").split()[-1] for part in PARTS]
    rows = []
    for name, entry in figures.items():
        seconds = entry["epoch_seconds"]
        shares = [f"{entry['parts'][part] / seconds:.0%}" for part in PARTS]
        rows.append([name, number(seconds), number(entry["images_per_second"]), *shares])
    return Table(header, rows).for_terminal().split("\n")


def number(value: float) -> str:
    """Three digits, with k, M or G for thousands."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[letter]:.3g}{letter}"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds with three digits and a unit."""
    for limit, factor, unit in ((1.0, 1, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs")):
        if seconds >= limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def size(value: float | None) -> str:
    """Bytes, in decimal units."""
    return "?" if value is None else f"{number(value).replace('k', 'K')}B"


def _cells(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = entry["ratio_quartiles"]
    unit = entry["unit"]
    if unit:
        sides = [f"{number(entry[f'{prefix}{unit}_per_second'])}/s" for prefix in ("", "rival_")]
    else:
        sides = [duration(entry[f"{prefix}median_seconds"]) for prefix in ("", "rival_")]
    share = entry.get("share_of_ceiling")
    return (
        name,
        *sides,
        f"{entry['ratio']:.3g} ({low:.3g}–{high:.3g})",
        "" if share is None else f"{share:.1%}" if share < 0.1 else f"{share:.0%}",
        f"{size(entry['peak_bytes'])} ({size(entry['rival_peak_bytes'])})",
    )


def _footnotes(what: str, rows: Figures, key: str) -> list[str]:
    """Meaning of a column, and in which benchmarks, where it is not the same in all."""
    named: dict[str, list[str]] = {}
    for name, entry in rows.items():
        if entry.get(key):
            benchmark = name.partition("[")[0]
            cases = named.setdefault(entry[key], [])
            same = {each.get(key) for other, each in rows.items() if other.partition("[")[0] == benchmark}
            cases += [benchmark if len(same) == 1 else name]
    lines = []
    for text, cases in named.items():
        where = "" if len(named) == 1 else f" ({', '.join(dict.fromkeys(cases))})"
        lines += textwrap.wrap(f"{what}: {text}{where}", WIDTH, subsequent_indent="    ")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
