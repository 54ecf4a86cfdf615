"""What a terminal shows of the GPU suite's report: a line for each section, and a few for its figures."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import kernel_timings

Figures = list[dict[str, Any]]


def table(report: dict[str, Any], most_characters: int = 11_000) -> str:
    """The report in at most about `most_characters`."""
    lines = ["dry run: no GPU figures"] if report["dry"] else []
    for name, entry in report["sections"].items():
        lines.append(
            f"{name:<12} {entry['status']:<10} {entry.get('seconds', 0):7.1f} s  {entry.get('reason', '')[:300]}"
        )
    figures = {name: entry["figures"] for name, entry in report["sections"].items()}
    for name, show in _SHOWN.items():
        lines += show(figures.get(name, []))
    text = "\n".join(lines)
    timed = [each for each in figures.get("kernels", []) if "variants" in each]
    if timed:
        text += "\n\n" + kernel_timings.table(timed, most_characters - len(text))
    return text


def _machine(figures: Figures) -> Iterator[str]:
    for each in figures:
        versions = f"torch {each['torch']}, triton {each['triton']}"
        yield f"{each['device']}, {versions}, L2 {each['cache_bytes'] / 1e6:.0f} MB"


def _ceilings(figures: Figures) -> Iterator[str]:
    for each in figures:
        if "what" not in each:
            continue
        rate = f", {each['bytes_per_second'] / 1e9:.0f} GB/s" if "bytes_per_second" in each else ""
        size = f" {each['bytes'] / 1e6:.2f} MB {each['cache']}" if "bytes" in each else ""
        yield f"{each['what']}{size}: {each['microseconds']:.4g} µs{rate}"


def _correctness(figures: Figures) -> Iterator[str]:
    checked = [each for each in figures if "passed" in each]
    if checked:
        worst = max(checked, key=lambda each: each["worst_share_of_limit"])
        passed = sum(each["passed"] for each in checked)
        share = f"{worst['worst_share_of_limit']:.0%} of the limit"
        yield f"correctness: {passed} of {len(checked)} passed; nearest to failing: {worst['case']}, {share}"


def _routing(figures: Figures) -> Iterator[str]:
    for each in figures:
        if each.get("rule_is_times_as_slow", 0) > 1.02:
            slower = f"{each['rule_is_times_as_slow']:.2f} times as long"
            yield f"{each['route']}: {each['fastest']}; the rule's {each['rule']} takes {slower}"


def _augment(figures: Figures) -> Iterator[str]:
    for each in figures:
        if "differing_values" in each:
            yield f"augment {each['case']}: {'as the reference' if each['passed'] else 'WRONG'}"
        if "variants" in each:
            mine, rival = each["variants"].get("ours"), each["variants"].get("torchvision", {})
            ratio = rival.get("ours_is_times_as_fast")
            against = f"{ratio:.1f} times torchvision" if ratio else "torchvision missing"
            speed = f"{mine['microseconds']:.4g} µs, {mine['share_of_copy']:.0%} of the copy rate" if mine else ""
            yield f"augment {each['case']}: {speed or 'missing'}, {against}"


def _loaders(figures: Figures) -> Iterator[str]:
    for each in figures:
        if "missing" in each:
            yield f"loader {each['loader']}: {each['missing']}"
        else:
            speed = f"{each['images_per_second']:,.0f} images/s, {each['input_stall']:.1%} of the time waiting for data"
            yield f"loader {each['loader']}: {speed}"


_SHOWN: dict[str, Callable[[Figures], Iterator[str]]] = {
    "machine": _machine,
    "ceilings": _ceilings,
    "correctness": _correctness,
    "routing": _routing,
    "augment": _augment,
    "loaders": _loaders,
}
