"""How a live run looks while it goes on: a table of groups on a terminal, plain lines elsewhere.

It draws what it is given, and asks nothing.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simulator.core.facts import DeviceSight

LINE_EVERY_S: Final = 5.0  # between two summary lines where there is no terminal
REDRAWS_PER_S: Final = 4


def lines_of(sights: Mapping[str, DeviceSight]) -> list[tuple[str, int, int, str, str]]:
    """Return for each group: its name, devices, devices online, what they run, what they are doing."""
    groups: dict[str, list[DeviceSight]] = {}
    for sight in sights.values():
        groups.setdefault(sight.group, []).append(sight)
    found = []
    for name in sorted(groups):
        mine = groups[name]
        runs = Counter(sight.running or "nothing" for sight in mine)
        busy = Counter(sight.phase for sight in mine if sight.phase != "idle")
        found.append(
            (
                name,
                len(mine),
                sum(sight.online for sight in mine),
                _counted(runs, "; "),
                _counted(busy, ", ") or "idle",
            )
        )
    return found


def summary(sights: Mapping[str, DeviceSight]) -> str:
    """Return the fleet in one line."""
    return " · ".join(
        f"{name} {online}/{total} online, {runs}{'' if doing == 'idle' else f' ({doing})'}"
        for name, total, online, runs, doing in lines_of(sights)
    )


class Display:
    """Shows a run's progress, on a terminal with a table that stays in place; use it in a `with`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = (
            Live(console=console, refresh_per_second=REDRAWS_PER_S, transient=True)
            if console.is_terminal
            else None
        )
        self._began = time.monotonic()
        self._shown_at = -LINE_EVERY_S
        self._last = ""

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(f"{time.monotonic() - self._began:7.1f} s  {sentence}"), soft_wrap=True)

    def update(self, sights: Mapping[str, DeviceSight], waits_for: str, trouble: str) -> None:
        """Show the fleet as it is now; `trouble` is why a connection was not made, while some are not online."""
        trouble = "" if all(sight.online for sight in sights.values()) else trouble
        if self._live is not None:
            below = f"waits for: {waits_for.removeprefix('wait for ')}"
            self._live.update(table(sights, f"{below}\n{trouble}" if trouble else below))
            return
        now = time.monotonic()
        line = summary(sights) + (f" · {trouble}" if trouble else "")
        if now - self._shown_at >= LINE_EVERY_S and line != self._last:
            self._shown_at, self._last = now, line
            self.say(line)


def table(sights: Mapping[str, DeviceSight], below: str = "") -> RenderableType:
    """Return the groups as a table."""
    drawn = Table("group", "devices", "online", "runs", "at work", box=None, pad_edge=False)
    for name, total, online, runs, doing in lines_of(sights):
        drawn.add_row(name, str(total), str(online), runs, doing)
    return Group(drawn, Text(below, style="dim")) if below else drawn


def _counted(counter: Counter[str], between: str) -> str:
    return between.join(
        f"{count} {name}" for name, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    )
