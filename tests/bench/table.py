"""The rows of the benchmark's table, and how they are shown: each measured figure beside its floor, with the ratio.

It measures nothing. It keeps the rule that a ratio says how far from the floor we are, 1 being as good as the floor,
whichever way the unit runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `floor` is what the same machine did in the same run with nothing of ours in the way."""

    name: str
    value: float
    unit: str
    floor: float
    less_is_better: bool = True
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times worse than the floor: 1 is as good, 2 twice the cost or half the rate; None beside a zero."""
        if not self.floor or not self.value:
            return None
        return self.value / self.floor if self.less_is_better else self.floor / self.value


@dataclass(frozen=True, slots=True)
class Section:
    """One measurement: its rows, and the sentences that say what was measured and what the floor is."""

    title: str
    floor: str
    rows: tuple[Row, ...]


def show(sections: Iterable[Section], console: Console) -> None:
    """Print the sections as tables."""
    for section in sections:
        table = Table(title=section.title, title_justify="left", caption=f"floor: {section.floor}")
        table.caption_justify = "left"
        table.add_column("figure")
        for name in ("measured", "floor", "times the floor"):
            table.add_column(name, justify="right")
        table.add_column("note")
        for row in section.rows:
            table.add_row(*cells(row))
        console.print(table)


def markdown(sections: Iterable[Section]) -> str:
    """Return the same as Markdown, for `docs/benchmarks.md`."""
    lines = []
    for section in sections:
        lines += [f"### {section.title}", "", f"Floor: {section.floor}.", ""]
        lines += [
            "| figure | measured | floor | times the floor | note |",
            "| --- | ---: | ---: | ---: | --- |",
        ]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in section.rows]
        lines.append("")
    return "\n".join(lines)


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """Return a row as text."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return row.name, f"{number(row.value)} {row.unit}", f"{number(row.floor)} {row.unit}", ratio, row.note


def number(value: float) -> str:
    """Return three digits that mean something."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
