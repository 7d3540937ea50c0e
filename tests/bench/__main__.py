"""`make bench`: the table of speed and memory, every figure beside a floor taken in the same run.

It asserts behaviour (every device committed, every report in the database), never time. Floors and figures share a
noisy machine: trust the ratios.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click
from rich.console import Console

from tests.bench import acknowledged, footprint, reports, rollout
from tests.bench.processes import machine
from tests.bench.table import Section, markdown, show

MOSQUITTO_PATH: Final = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
NAMES: Final = ("embedded", "mosquitto", "store", "ack", "agent")
NEEDS_MOSQUITTO: Final = ("mosquitto", "ack")


@click.command()
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="Measure only this; repeatable.")
@click.option("--devices", type=click.IntRange(min=1), default=1_000, show_default=True)
@click.option("--payload", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Bytes.")
@click.option("--fetch-every", type=click.IntRange(min=1), default=10, show_default=True,
              help="One device in so many downloads for itself; 1: each does.")  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of what is repeated."
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown, as docs/benchmarks.md has it.")
def main(
    only: tuple[str, ...], devices: int, payload: int, fetch_every: int, rounds: int, as_markdown: bool
) -> None:
    """Measure, and print a table."""
    measures: dict[str, Callable[[Path], Section]] = {
        "embedded": lambda at: rollout.measure(rollout.Plan("embedded", devices, payload, fetch_every), at),
        "mosquitto": lambda at: rollout.measure(rollout.Plan("mosquitto", devices, payload, fetch_every), at),
        "store": lambda at: reports.measure(reports.Plan(devices=5 * devices, rounds=rounds), at),
        "ack": lambda at: acknowledged.measure(acknowledged.Plan(states=2_000 * rounds), at),
        "agent": lambda at: footprint.measure(rounds, at),
    }
    say = Console(stderr=True)
    say.print(f"[bold]{machine()}[/bold]")
    sections = []
    for name in only or NAMES:
        if name in NEEDS_MOSQUITTO and shutil.which("mosquitto", path=MOSQUITTO_PATH) is None:
            say.print(
                f"[bold red]{name}: skipped, mosquitto is not installed: run `apt-get install mosquitto`"
            )
            continue
        with TemporaryDirectory(prefix="lastgood-bench-") as folder, say.status(f"measuring {name}"):
            sections.append(measures[name](Path(folder)))
        say.print(f"{name}: done")
    if as_markdown:
        sys.stdout.write(markdown(sections))
    else:
        show(sections, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
