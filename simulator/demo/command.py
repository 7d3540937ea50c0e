"""`lastgood demo`: wires the story to its processes.

It holds nothing of the story itself. Exit codes: 0 all that was told came true, 1 it did not, 130 Ctrl-C.
"""

import signal
import tempfile
import time
from pathlib import Path
from typing import Final

import click

from protocol.errors import LastgoodError
from simulator.demo.backstage import Backstage
from simulator.demo.cast import cast
from simulator.demo.story import Story
from simulator.demo.typist import import_ahead
from simulator.signals import end_like_ctrl_c

SEED_DEFAULT: Final = 7


@click.command()
@click.option(
    "--broker", default="auto", show_default=True, help="auto, mosquitto, embedded, or an mqtt:// address."
)
@click.option(
    "--seed", type=int, default=SEED_DEFAULT, show_default=True, help="Names the devices that fail."
)
@click.option("--quick", is_flag=True, help="A small fleet: for a rehearsal, and for CI.")
@click.option("--keep", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
def demo(broker: str, seed: int, quick: bool, keep: bool) -> None:
    """An update reaches a fleet, a bad one fails on real slots, and the group goes back by policy."""
    began_s = time.monotonic()
    end_like_ctrl_c()
    import_ahead()
    with tempfile.TemporaryDirectory(prefix="lastgood-demo-") as folder:
        backstage = Backstage(Path(folder), broker, _typed)
        with backstage:
            try:
                Story(backstage, cast(seed, quick=quick), began_s).tell()
            except LastgoodError:
                _show_logs(Path(folder))
                raise
            click.echo(f"\nIt took {time.monotonic() - began_s:.0f} s.")
            if keep:
                click.echo("Everything is left running; Ctrl-C ends it.")
                signal.pause()
    click.echo("Every process that it started has ended.")


def _typed(command: str) -> None:
    click.echo("          " + click.style(f"$ {command}", fg="green"))


def _show_logs(folder: Path) -> None:
    """Print the ends of the logs, which say why."""
    for log in sorted(folder.rglob("*.log")):
        text = log.read_text(errors="replace")
        if text:
            click.echo(f"--- {log.name}\n{text[-2_000:]}", err=True)
