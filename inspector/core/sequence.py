"""A device's conversation as a sequence diagram: lanes for device and cloud, arrows, and the time between.

It is not about where messages come from: live or read from a file, they are laid out alike. It keeps the rule
that one message never needs the next one to be drawn, so that the diagram can be followed live.
"""

from datetime import tzinfo
from typing import Final

from inspector.core.numbers import after, clock, span
from inspector.core.seen import Seen
from inspector.core.summary import facts
from inspector.core.text import Piece, Pieces, Role, cut, escape, join, paint, width, width_of, wrap
from protocol.topics import RULES, Direction, Kind

SILENCE_MS: Final = 5_000  # a longer one is drawn as a break between two messages
COLUMNS_MAX: Final = 132  # wider diagrams are harder to follow, not easier
LANE_CELLS_MIN: Final = 34  # between the two lanes
KIND_CELLS: Final = 8  # so that what is said begins in one column

_TIME_CELLS: Final = 12
_AFTER_CELLS: Final = 16
_MARGIN_CELLS: Final = _TIME_CELLS + _AFTER_CELLS + 2
_LEAD_CELLS: Final = 3  # of the arrow before its label
_TAIL_CELLS_MIN: Final = 4  # of the arrow behind it


class Sequence:
    """Draws messages one after another; remembers only when the one before was."""

    def __init__(self, device: str, zone: tzinfo, columns: int) -> None:
        self._device = device
        self._zone = zone
        self._inner = max(LANE_CELLS_MIN, min(columns, COLUMNS_MAX) - _MARGIN_CELLS - 4)
        self._before_ms: int | None = None

    def head(self) -> list[Pieces]:
        """Return the lines above the first message: who stands at which lane."""
        left, right = cut(escape(self._device), self._inner - 8), "cloud"
        gap = " " * (self._inner + 2 - width(left) - len(right))
        margin = Piece(" " * _MARGIN_CELLS)
        line = "┬" + "─" * self._inner + "┬"
        blank = line.replace("─", " ").replace("┬", "│")
        return [
            (margin, Piece(left, Role.NAME), Piece(gap), Piece(right, Role.NAME)),
            (margin, Piece(blank, Role.DIM)),
        ]

    def lines(self, seen: Seen) -> list[Pieces]:
        """Return the lines of one message, and of the silence before it."""
        span_ms = None if self._before_ms is None else seen.at_ms - self._before_ms
        self._before_ms = seen.at_ms
        silence = [] if span_ms is None or span_ms < SILENCE_MS else self._silence(span_ms)
        shown = "" if span_ms is None else after(span_ms)
        time = (
            Piece(clock(seen.at_ms, self._zone), Role.DIM),
            Piece(
                shown.rjust(_AFTER_CELLS) + "  ",
                Role.WARN if span_ms and span_ms >= SILENCE_MS else Role.PLAIN,
            ),
        )
        label, rest = self._label(seen)
        margin = Piece(" " * _MARGIN_CELLS)
        lane = Piece("│", Role.DIM)
        indent = " " * (_LEAD_CELLS + 1)
        below: list[Pieces] = []
        for row in rest:
            pad = " " * (self._inner - len(indent) - width_of(row))
            below.append((margin, lane, Piece(indent), *row, Piece(pad), lane))
        return [*silence, (*time, *self._arrow(seen, label)), *below]

    def _label(self, seen: Seen) -> tuple[Pieces, list[Pieces]]:
        """Return what fits on the arrow, and the rows below it."""
        role = Role.BAD if seen.refused else Role.UP if _is_up(seen) else Role.DOWN
        name = seen.kind.value if seen.kind else "unknown"
        kind = Piece(f" {name} ", role)
        space = Piece(" " * (KIND_CELLS - width(name)))
        on_arrow = self._inner - _LEAD_CELLS - _TAIL_CELLS_MIN - KIND_CELLS - 3
        said = facts(seen)
        taken = _count_fitting(said, on_arrow)
        label = (kind, space, *join(said[:taken]), Piece(" ")) if taken else (kind,)
        return label, wrap(said[taken:], self._inner - 2 * (_LEAD_CELLS + 1)) if said[taken:] else []

    def _arrow(self, seen: Seen, label: Pieces) -> Pieces:
        up = _is_up(seen)
        role = Role.BAD if seen.refused else Role.UP if up else Role.DOWN
        stroke = "╌" if seen.kind in (Kind.GONE, Kind.PROGRESS, Kind.SYNC) else "─"
        lane = Piece("│", Role.DIM)
        rest = self._inner - _LEAD_CELLS - width_of(label)
        if up:
            return (
                lane,
                Piece(stroke * _LEAD_CELLS, role),
                *label,
                Piece(stroke * (rest - 1) + "▶", role),
                lane,
            )
        return (lane, Piece("◀" + stroke * (_LEAD_CELLS - 1), role), *label, Piece(stroke * rest, role), lane)

    def _silence(self, span_ms: int) -> list[Pieces]:
        text = f"{span(span_ms)} of silence"
        left = (self._inner - len(text)) // 2
        right = self._inner - len(text) - left
        return [
            (
                Piece(" " * _MARGIN_CELLS),
                Piece("┊" + " " * left + text + " " * right + "┊", Role.DIM),
            )
        ]


class Mermaid:
    """Writes the same conversation as a mermaid `sequenceDiagram`, which wikis and issue trackers draw."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._before_ms: int | None = None

    def head(self) -> list[str]:
        """Return the lines above the first message."""
        return [
            "sequenceDiagram",
            f"    participant D as {_mermaid(self._device)}",
            "    participant C as cloud",
        ]

    def lines(self, seen: Seen) -> list[str]:
        """Return the lines of one message."""
        span_ms = None if self._before_ms is None else seen.at_ms - self._before_ms
        self._before_ms = seen.at_ms
        result = []
        if span_ms is not None and span_ms >= SILENCE_MS:
            result.append(f"    Note over D,C: {span(span_ms)} of silence")
        way = "D->>C" if _is_up(seen) else "C->>D"
        if seen.kind in (Kind.GONE, Kind.PROGRESS, Kind.SYNC):
            way = way.replace("->>", "-->>")
        said = paint(join(facts(seen)), colour=False)
        when = f" ({after(span_ms)})" if span_ms is not None else ""
        kind = seen.kind.value if seen.kind else "unknown"
        result.append(f"    {way}: {_mermaid(f'{kind} · {said}{when}')}")
        return result


def _count_fitting(said: list[Pieces], cells: int) -> int:
    count = 0
    while count < len(said) and width_of(join(said[: count + 1])) <= cells:
        count += 1
    return count


def _is_up(seen: Seen) -> bool:
    return seen.kind is None or RULES[seen.kind].direction is Direction.UP


def _mermaid(text: str) -> str:
    """Return text that mermaid takes as it stands."""
    return escape(text).translate(_ENTITIES)


_ENTITIES: Final = str.maketrans({"#": "#35;", ";": "#59;", "<": "#lt;", ">": "#gt;"})
