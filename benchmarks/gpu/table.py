"""Terminal table of the GPU suite's results: a line for each section, and a few for its figures."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.kernels import timings

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
        text += "\n\n" + timings.table(timed, most_characters - len(text))
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
        if "operations_per_second" in each:
            rate = f", {each['operations_per_second'] / 1e12:.4g} TFLOP/s"
        size = f" {each['bytes'] / 1e6:.2f} MB {each['cache']}" if "bytes" in each else ""
        size = f" {each['precision']} {each['side']}²" if "side" in each else size
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


def _products(figures: Figures) -> Iterator[str]:
    for each in figures:
        if "case" in each:
            times, ratio = each["microseconds"], each["symmetric_is_times_as_fast"]
            yield (
                f"products {each['case']}: symmetric {ratio:.2f} times whole; "
                f"orthogonalised in {times['orthogonalise']:.4g} µs{'' if each['passed'] else ', INEXACT'}"
            )


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


def _step(figures: Figures) -> Iterator[str]:
    """One line a case, its groups of rivals together; a ratio is how many times as fast ours is."""
    for name in dict.fromkeys(each["case"] for each in figures if "variants" in each):
        groups = [each for each in figures if each.get("case") == name]
        mine = next((each["variants"]["ours"] for each in groups if "ours" in each["variants"]), None)
        line = f"step {name}: "
        if mine is None:
            line += "ours missing"
        else:
            line += f"{mine['microseconds']:.4g} µs, {mine['images_per_second']:,.0f} images/s, "
            line += f"{mine['share_of_matrix_rate']:.1%} of the matrix rate"
            line += "" if groups[0].get("captured") else ", not captured"
        for group in groups:
            for rival in group["rivals"]:
                ratio = group["variants"].get(rival, {}).get("ours_is_times_as_fast")
                line += f"; {ratio:.2f} times {rival}" if ratio else f"; {rival} missing"
        yield line + _goals(groups[0]["goals"])


def _goals(goals: dict[str, float]) -> str:
    words = {
        "microseconds": "{:g} µs",
        "share_of_matrix_rate": "{:.0%} of the matrix rate",
        "times_max_autotune": "{:g} times max-autotune",
    }
    said = [words[name].format(value) for name, value in goals.items()]
    return f" (goal: {', '.join(said)})" if said else ""


def _speedrun(figures: Figures) -> Iterator[str]:
    for each in figures:
        if "mean_accuracy" not in each:
            continue
        spread = f", SD {each['sd_accuracy']:.2%}" if each["sd_accuracy"] is not None else ""
        if each["interval_low"] is not None:
            spread += f", 95% interval {each['interval_low']:.2%} to {each['interval_high']:.2%}"
        goal = f" (goal {each['goal']['mean_accuracy']:.0%})" if each["goal"] else ""
        seconds = f"{each['mean_seconds']:.3f} s a run, the first with compilation {each['cold_seconds']:.1f} s"
        yield f"speedrun on {each['source']}, n = {each['runs']}: {each['mean_accuracy']:.2%}{spread}{goal}; {seconds}"


def _epoch(figures: Figures) -> Iterator[str]:
    for each in figures:
        if "recipe" not in each:
            continue
        waits = {None: "synchronisations not counted", 0: "no synchronisation"}
        count = each["synchronisations"]
        parts = [
            f"{each['images_per_second']:,.0f} images/s",
            f"{each['milliseconds_per_step'] * 1e3:.4g} µs a step",
            f"{each['gap_share']:.1%} of it gaps",
            waits.get(count, f"{count} synchronisations"),
            f"loader {each['loader']}" + ("" if each["captured"] else ", not captured"),
        ]
        yield f"epoch {each['recipe']} on {each['source']}: {', '.join(parts)}"
        if "projected_run_seconds" in each:
            yield f"projection of the report's whole run: {each['projected_run_seconds']:.0f} s ({each['projection']})"


def _report_best(figures: Figures) -> Iterator[str]:
    for each in figures:
        if each["finished"]:
            how = f"test accuracy {each['test_accuracy']:.2%}, compiled: {each['compiled']}, loader {each['loader']}"
            yield f"report_best on {each['source']}: {each['wall_seconds']:.1f} s for {each['epochs']:g} epochs; {how}"
        else:
            done = f"{each['epochs_done']} of {each['epochs']:g} epochs"
            yield f"report_best on {each['source']}: ended after {each['wall_seconds']:.0f} s, {done}"


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
    "products": _products,
    "augment": _augment,
    "step": _step,
    "speedrun": _speedrun,
    "epoch": _epoch,
    "report_best": _report_best,
    "loaders": _loaders,
}
