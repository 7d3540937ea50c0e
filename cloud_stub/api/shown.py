"""How values are written on a page: instants, durations, sizes, and bars made of counts.

Pure functions for the templates; they know no rows and no requests.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from markupsafe import Markup

HUES: Final = 8  # colours for updates in bars; the style sheet has `run-0` to `run-7`
_STATES: Final = (  # of a deployment's bar, in the order in which they are drawn
    ("succeeded", "succeeded", "good"),
    ("working", "working", "work"),
    ("pending", "not begun", "wait"),
    ("canceled", "canceled", "off"),
    ("failed", "failed", "bad"),
)


def when(at_ms: int | None, now_ms: int) -> Markup:
    """Return an instant as `3 min ago`, with the whole in UTC as its title."""
    if at_ms is None:
        return Markup("never")
    whole = datetime.fromtimestamp(at_ms / 1000, UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        whole.isoformat(), whole.strftime("%Y-%m-%d %H:%M:%S UTC"), _relative(now_ms - at_ms)
    )


def duration(milliseconds: int) -> str:
    """Return a duration in its largest whole unit."""
    for unit, name in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if milliseconds >= unit:
            number = milliseconds / unit
            return f"{number:.0f} {name}" if number == int(number) else f"{number:.1f} {name}"
    return f"{milliseconds} ms"


def size(count: int) -> str:
    """Return a number of bytes in the largest unit that gives at least 1."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{count} B"


def hue(name: str | None) -> str:
    """Return the class that colours an update: the same on every page, and neighbouring versions never alike."""
    if not name:
        return "run-none"
    kind, _, version = name.rpartition(":")
    steps = sum(
        weight * int(number) for weight, number in zip((3, 5, 7, 1), version.split("."), strict=False)
    )
    return f"run-{(sha256(kind.encode()).digest()[0] + steps) % HUES}"


def progress(tally: Any, undecided: int = 0) -> list[dict[str, Any]]:
    """Return the parts of a deployment's bar; failures count once, whoever is at fault.

    `undecided` counts members whose order is still to be written; they have not begun either.
    """
    counts = {state: getattr(tally, state) for state, _, _ in _STATES}
    counts["pending"] += undecided
    return bar((counts[state], label, kind) for state, label, kind in _STATES)


def bar(counts: Iterable[tuple[int, str, str]]) -> list[dict[str, Any]]:
    """Return parts of a bar from (count, label, class): each with its place and width in percent."""
    rows = list(counts)
    total = sum(count for count, _, _ in rows) or 1
    parts, at = [], 0.0
    for count, label, kind in rows:
        width = 100 * count / total
        parts.append(
            {"count": count, "label": label, "kind": kind, "x": round(at, 3), "width": round(width, 3)}
        )
        at += width
    return parts


def update_path(update: str) -> str:
    """Return the address of an update's page."""
    name, _, version = update.rpartition(":")
    return f"/updates/{name}/{version}"


def short(sha: str | None) -> str:
    """Return the beginning of a sha256, enough to tell two apart by eye."""
    return (sha or "")[:12]


def _relative(ago_ms: int) -> str:
    if abs(ago_ms) < 1_000:
        return "now"
    text = duration(abs(ago_ms) // _unit_of(abs(ago_ms)) * _unit_of(abs(ago_ms)))
    return f"{text} ago" if ago_ms > 0 else f"in {text}"


def _unit_of(milliseconds: int) -> int:
    return next(unit for unit in (86_400_000, 3_600_000, 60_000, 1_000) if milliseconds >= unit)


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "when": when,
    "duration": duration,
    "size": size,
    "hue": hue,
    "progress": progress,
    "bar": bar,
    "update_path": update_path,
    "short": short,
    "words": lambda text: str(text).replace("_", " "),
    "compact": lambda value: json.dumps(value, ensure_ascii=False, sort_keys=True),
}
GLOBALS: Final[Mapping[str, Any]] = {
    "NAVIGATION": (
        ("/", "Overview"),
        ("/devices", "Devices"),
        ("/updates", "Updates"),
        ("/deployments", "Deployments"),
        ("/audit", "Audit"),
    )
}
