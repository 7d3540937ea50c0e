"""The lines of `lastgood mqtt tail`: one message, one line, or several rows in a narrow terminal.

It is not about colours of a terminal (`text.py`) nor about what a message says (`summary.py`).
"""

from datetime import tzinfo
from typing import Final

from inspector.core.numbers import clock, size
from inspector.core.seen import Seen
from inspector.core.summary import arrow, facts
from inspector.core.text import Piece, Pieces, Role, cut, join, width, width_of, wrap

DEVICE_CELLS_MAX: Final = 28  # of the device's column; a longer id is cut, and `--json` has it whole
KIND_CELLS: Final = 8
FACTS_CELLS_MIN: Final = 24  # less is unreadable: then the terminal may break lines where it likes


class Tail:
    """Lays lines out; remembers only how wide the device column has become."""

    def __init__(self, zone: tzinfo, columns: int | None) -> None:
        """`columns` is the terminal's width in cells; None when there is none: then nothing is wrapped."""
        self._zone = zone
        self._columns = columns
        self._device_cells = 8

    def lines(self, seen: Seen) -> list[Pieces]:
        """Return the lines of one message."""
        name = cut(seen.device or "?", DEVICE_CELLS_MAX)
        self._device_cells = max(self._device_cells, width(name))
        way = arrow(seen)
        kind = (seen.kind.value if seen.kind else "unknown").ljust(KIND_CELLS)
        head: Pieces = (
            Piece(clock(seen.at_ms, self._zone), Role.DIM),
            Piece("  "),
            Piece(name + " " * (self._device_cells - width(name)), Role.NAME),
            Piece("  "),
            way,
            Piece(f" {kind} ", Role.BAD if seen.refused else way.role),
        )
        said = facts(seen)
        if seen.refused:
            said.append((Piece(size(seen.size_bytes), Role.DIM),))
        if self._columns is None or self._columns - width_of(head) < FACTS_CELLS_MIN:
            return [(*head, *join(said))]
        rows = wrap(said, self._columns - width_of(head))
        margin = Piece(" " * width_of(head))
        return [(*head, *rows[0]), *((margin, *row) for row in rows[1:])]
