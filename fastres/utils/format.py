"""Numbers, counts, lists and durations as people read them."""

from collections.abc import Iterable

DASH = "–"
"""In the place of what is not known."""
ONE_CLASS = "a single class: every answer is right, so that an accuracy of 100% says nothing"
"""Warning about data of one class."""
MOST_FAULTS = 10
"""Faults of one kind that an error names; it counts the others."""


def number(value: float | None, form: str) -> str:
    """`value` in the format `form`, a dash for None."""
    return DASH if value is None else format(value, form)


def plural(count: float, one: str, many: str) -> str:
    """`count` with the word that fits it."""
    return f"{count:,} {one if count == 1 else many}"


def listed(texts: Iterable[str], total: int) -> str:
    """The first of `total` texts, which are all that are known, and how many there are besides."""
    shown = [*texts]
    more = [f"and {total - len(shown):,} more"] * (total > len(shown))
    return "; ".join([*shown, *more])


def wall_time(value: float | None) -> str:
    """Seconds as text, above ten minutes in hours and minutes; a dash for None."""
    if value is None:
        return DASH
    if value < 600:
        return f"{value:.1f} s"
    hours, rest = divmod(round(value / 60), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
