"""Text for a terminal: pieces with a role, made safe, measured, cut, wrapped and painted.

It is not about messages. It keeps the rule that nothing a device sends can move the cursor, change a colour
or turn the writing direction: every character that is not plainly printable is escaped.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a piece of text is, and so which colour it has."""

    PLAIN = "plain"
    DIM = "dim"
    NAME = "name"
    UP = "up"
    DOWN = "down"
    STRONG = "strong"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text and its role. The text is already escaped."""

    text: str
    role: Role = Role.PLAIN


Pieces = tuple[Piece, ...]

SEPARATOR: Final = Piece(" · ", Role.DIM)

_CODES: Final = {
    Role.PLAIN: "",
    Role.DIM: "2",
    Role.NAME: "1",
    Role.UP: "36",
    Role.DOWN: "35",
    Role.STRONG: "1",
    Role.GOOD: "32",
    Role.WARN: "33",
    Role.BAD: "1;31",
}


def paint(pieces: Sequence[Piece], *, colour: bool) -> str:
    """Return the pieces as one string, with terminal colours when asked for."""
    if not colour:
        return "".join(piece.text for piece in pieces)
    return "".join(
        f"\x1b[{_CODES[piece.role]}m{piece.text}\x1b[0m" if _CODES[piece.role] else piece.text
        for piece in pieces
    )


def escape(text: str) -> str:
    """Return `text` with every character that is not plainly printable written as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char == " " or char.isprintable() else _escaped(char) for char in text)


def width(text: str) -> int:
    """Return how many cells `text` takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cells(char) for char in text)


def width_of(pieces: Sequence[Piece]) -> int:
    """Return how many cells the pieces take."""
    return sum(width(piece.text) for piece in pieces)


def cut(text: str, cells_max: int) -> str:
    """Return `text` in at most `cells_max` cells, with an ellipsis where something was left out."""
    if width(text) <= cells_max:
        return text
    kept = ""
    for char in text:
        if width(kept) + _cells(char) > cells_max - 1:
            break
        kept += char
    return kept + "…" if cells_max > 0 else ""


def join(facts: Sequence[Pieces]) -> Pieces:
    """Return facts in one row, with a separator between."""
    result: list[Piece] = []
    for index, fact in enumerate(facts):
        result += [SEPARATOR, *fact] if index else fact
    return tuple(result)


def wrap(facts: Sequence[Pieces], cells_max: int) -> list[Pieces]:
    """Return facts in as many rows of `cells_max` cells as they need; a fact longer than a row is broken."""
    rows: list[list[Pieces]] = [[]]
    for fact in facts:
        if rows[-1] and width_of(join([*rows[-1], fact])) > cells_max:
            rows.append([])
        first, *more = _broken(fact, cells_max)
        rows[-1].append(first)
        rows += [[part] for part in more]
    return [join(row) for row in rows]


def _broken(fact: Pieces, cells_max: int) -> list[Pieces]:
    """Return one fact in rows, broken behind a space where there is one."""
    rows: list[list[Piece]] = [[]]
    left = cells_max
    for piece in fact:
        for word in re.findall(r"[^ ]* *", piece.text)[:-1]:
            while word:
                if width(word.rstrip()) > left and rows[-1]:
                    rows.append([])
                    left = cells_max
                part = word if width(word.rstrip()) <= left else _beginning(word, left)
                rows[-1].append(Piece(part, piece.role))
                left -= width(part)
                word = word[len(part) :]
    return [tuple(row) for row in rows]


def _beginning(text: str, cells_max: int) -> str:
    """Return as much of `text` as fits, and never less than one character."""
    kept, cells = 1, _cells(text[0])
    while kept < len(text) and cells + _cells(text[kept]) <= cells_max:
        cells += _cells(text[kept])
        kept += 1
    return text[:kept]


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
