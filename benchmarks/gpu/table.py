"""Terminal table of the GPU suite's results: a line for each section, and a few for its figures."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.kernels import timings

Figure = dict[str, Any]
Figures = list[Figure]


def table(report: dict[str, Any], most_characters: int = 11_000) -> str:
    """The report in at most about `most_characters`."""
    lines = ["dry run: no GPU figures"] if report["dry"] else []
    for name, entry in report["sections"].items():
        lines.append(
            f"{name:<12} {entry['status']:<10} {entry.get('seconds', 0):7.1f} s  {entry.get('reason', '')[:300]}"
        )
    figures = {name: entry["figures"] for name, entry in report["sections"].items()}
    for name, (key, show) in _SHOWN.items():
        lines += filter(None, (show(each) for each in figures.get(name, []) if key in each))
    lines += [*_correctness(figures.get("correctness", [])), *_steps(figures.get("step", []))]
    text = "\n".join(lines)
    timed = [each for each in figures.get("kernels", []) if "variants" in each]
    if timed:
        text += "\n\n" + timings.table(timed, most_characters - len(text))
    return text


def _correctness(figures: Figures) -> Iterator[str]:
    checked = [each for each in figures if "passed" in each]
    if checked:
        worst = max(checked, key=lambda each: each["worst_share_of_limit"])
        passed = sum(each["passed"] for each in checked)
        share = f"{worst['worst_share_of_limit']:.0%} of the limit"
        yield f"correctness: {passed} of {len(checked)} passed; nearest to failing: {worst['case']}, {share}"


def _steps(figures: Figures) -> Iterator[str]:
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
        said = [_GOALS[goal].format(value) for goal, value in groups[0]["goals"].items()]
        yield line + (f" (goal: {', '.join(said)})" if said else "")


_GOALS = {
    "microseconds": "{:g} µs",
    "share_of_matrix_rate": "{:.0%} of the matrix rate",
    "times_max_autotune": "{:g} times max-autotune",
}


def _machine(each: Figure) -> str:
    return f"{each['device']}, torch {each['torch']}, triton {each['triton']}, L2 {each['cache_bytes'] / 1e6:.0f} MB"


def _ceiling(each: Figure) -> str:
    rate = f", {each['bytes_per_second'] / 1e9:.0f} GB/s" if "bytes_per_second" in each else ""
    if "operations_per_second" in each:
        rate = f", {each['operations_per_second'] / 1e12:.4g} TFLOP/s"
    size = f" {each['bytes'] / 1e6:.2f} MB {each['cache']}" if "bytes" in each else ""
    size = f" {each['precision']} {each['side']}²" if "side" in each else size
    return f"{each['what']}{size}: {each['microseconds']:.4g} µs{rate}"


def _route(each: Figure) -> str:
    slower = each["rule_is_times_as_slow"]
    text = f"{each['route']}: {each['fastest']}; the rule's {each['rule']} takes {slower:.2f} times as long"
    return text if slower > 1.02 else ""


def _product(each: Figure) -> str:
    times, ratio = each["microseconds"], each["symmetric_is_times_as_fast"]
    inexact = "" if each["passed"] else ", INEXACT"
    whole = f"orthogonalised in {times['orthogonalise']:.4g} µs{inexact}"
    return f"products {each['case']}: symmetric {ratio:.2f} times whole; {whole}"


def _augmentation(each: Figure) -> str:
    if "differing_values" in each:
        return f"augment {each['case']}: {'as the reference' if each['passed'] else 'WRONG'}"
    mine, rival = each["variants"].get("ours"), each["variants"].get("torchvision", {})
    ratio = rival.get("ours_is_times_as_fast")
    against = f"{ratio:.1f} times torchvision" if ratio else "torchvision missing"
    speed = f"{mine['microseconds']:.4g} µs, {mine['share_of_copy']:.0%} of the copy rate" if mine else "missing"
    return f"augment {each['case']}: {speed}, {against}"


def _speedrun(each: Figure) -> str:
    spread = f", SD {each['sd_accuracy']:.2%}" if each["sd_accuracy"] is not None else ""
    if each["interval_low"] is not None:
        spread += f", 95% interval {each['interval_low']:.2%} to {each['interval_high']:.2%}"
    goal = f" (goal {each['goal']['mean_accuracy']:.0%})" if each["goal"] else ""
    seconds = f"{each['mean_seconds']:.3f} s a run, the first with compilation {each['cold_seconds']:.1f} s"
    return f"speedrun on {each['source']}, n = {each['runs']}: {each['mean_accuracy']:.2%}{spread}{goal}; {seconds}"


def _epoch(each: Figure) -> str:
    waits = {None: "synchronisations not counted", 0: "no synchronisation"}
    count = each["synchronisations"]
    parts = [
        f"{each['images_per_second']:,.0f} images/s",
        f"{each['milliseconds_per_step'] * 1e3:.4g} µs a step",
        f"{each['gap_share']:.1%} of it gaps",
        waits.get(count, f"{count} synchronisations"),
        f"loader {each['loader']}" + ("" if each["captured"] else ", not captured"),
    ]
    line = f"epoch {each['recipe']} on {each['source']}: {', '.join(parts)}"
    if "projected_run_seconds" in each:
        seconds = f"{each['projected_run_seconds']:.0f} s ({each['projection']})"
        line += f"\nprojection of the report's whole run: {seconds}"
    return line


def _report_best(each: Figure) -> str:
    if each["finished"]:
        how = f"test accuracy {each['test_accuracy']:.2%}, compiled: {each['compiled']}, loader {each['loader']}"
        done = f"{each['wall_seconds']:.1f} s for {each['epochs']:g} epochs; {how}"
    else:
        epochs = f"{each['epochs_done']} of {each['epochs']:g} epochs"
        done = f"ended after {each['wall_seconds']:.0f} s, {epochs}"
    return f"report_best on {each['source']}: {done}"


def _loader(each: Figure) -> str:
    if "missing" in each:
        return f"loader {each['loader']}: {each['missing']}"
    speed = f"{each['images_per_second']:,.0f} images/s, {each['input_stall']:.1%} of the time waiting for data"
    return f"loader {each['loader']}: {speed}"


_SHOWN: dict[str, tuple[str, Callable[[Figure], str]]] = {
    "machine": ("device", _machine),
    "ceilings": ("what", _ceiling),
    "routing": ("route", _route),
    "products": ("case", _product),
    "augment": ("case", _augmentation),
    "speedrun": ("mean_accuracy", _speedrun),
    "epoch": ("recipe", _epoch),
    "report_best": ("finished", _report_best),
    "loaders": ("loader", _loader),
}
"""The sections whose figures have a line each: the key that one has, and what the line says of it."""
