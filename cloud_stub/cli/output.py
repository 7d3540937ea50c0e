"""How commands print: tables for people, the API's own objects for scripts, both from the same answer.

It holds no rules. Tables go through rich, which is loaded only when one is printed.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

_PIPE_WIDTH: Final = 160  # columns when the output is no terminal: lines are for grep, and not to be broken

Cell = str | int | None


def say_json(value: Any) -> None:
    """Print the API's own object."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, empty: str) -> None:
    """Print a table, or one sentence when there is nothing; names that begin with `#` are columns of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(
            name.lstrip("#"), justify="right" if name.startswith("#") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_plain("" if cell is None else str(cell)) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        click.echo(empty)


def say_facts(facts: Iterable[tuple[str, Cell]]) -> None:
    """Print names and values below one another; what is empty is left out."""
    rows = [(name, value) for name, value in facts if value not in (None, "")]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def console(*, stderr: bool = False) -> Any:
    """Return a console that does not break lines for pipes."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)


def instant(at_ms: int | None) -> str:
    """Return an instant in UTC."""
    if at_ms is None:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: int) -> str:
    """Return a number of bytes for people."""
    return (
        f"{count} B" if count < 1000 else f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
    )


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 device`, `2 devices`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def names(refs: Iterable[Any]) -> str:
    """Return the names of updates."""
    return ", ".join(ref["update"] for ref in refs)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # what devices wrote is no markup
