"""`lastgood deploy watch`: a deployment followed live, in a terminal, line by line, or as JSON lines.

It holds no rules: when a deployment is settled is said by the cloud.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from queue import Empty, Queue
from typing import Any, Final

import click

from cloud_stub.cli.client import Cloud
from cloud_stub.cli.output import console, names
from protocol.errors import LastgoodError

WELL: Final = 0
NOT_WELL: Final = 1  # settled with failures, canceled, superseded, or given up
ROLLED_BACK: Final = 3
_BAR_CELLS: Final = 60
_PARTS: Final = (
    ("succeeded", "green"),
    ("working", "blue"),
    ("pending", "bright_black"),
    ("canceled", "yellow"),
    ("failed", "red"),
)


def watch_deployment(cloud: Cloud, path: str, timeout_ms: int | None, as_json: bool) -> int:
    """Follow the stream at `path` until the deployment is settled or has ended; return the exit code."""
    terminal = console()
    live = None
    if terminal.is_terminal and not as_json:
        from rich.live import Live

        live = Live(console=terminal, refresh_per_second=8)
    last = ""
    with live or nullcontext():
        for view in _views(cloud, path, timeout_ms):
            if view is None:
                break
            if as_json:
                click.echo(json.dumps(view, ensure_ascii=False))
            elif live:
                live.update(_picture(view))
            elif (line := _line(view)) != last:
                click.echo(line)
                last = line
            if (code := _ended(view)) is not None:
                return code
    click.echo("It is neither settled nor ended yet; the time that --timeout gave is over.", err=True)
    return NOT_WELL


def _views(cloud: Cloud, path: str, timeout_ms: int | None) -> Iterator[Any]:
    """Yield each view that the cloud sends; None when the time is over, which a silent stream would not notice."""
    if timeout_ms is None:
        yield from cloud.follow(path)
        return
    queue: Queue[Any] = Queue()

    def read() -> None:
        try:
            for view in cloud.follow(path):
                queue.put(view)
        except LastgoodError as error:
            queue.put(error)
        except Exception:  # noqa: BLE001 - the thread's outermost loop: the connection was closed under it at the end
            queue.put(None)

    threading.Thread(target=read, name="watch", daemon=True).start()
    ends_s = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            found = queue.get(timeout=max(0.0, ends_s - time.monotonic()))
        except Empty:
            found = None
        if isinstance(found, LastgoodError):
            raise found
        yield found
        if found is None:
            return


def _ended(view: Any) -> int | None:
    match view["state"]:
        case "rolled_back":
            return ROLLED_BACK
        case "canceled" | "superseded":
            return NOT_WELL
        case "active" if view["settled"]:
            return NOT_WELL if view["tally"]["failed"] + view["tally"]["canceled"] else WELL
    return None


def _line(view: Any) -> str:
    policy = f" {view['policy']['sentence']}" if view["policy"] else ""
    return f"{view['id']} {view['state']}: {view['headline']}{policy}"


def _picture(view: Any) -> Any:
    from rich.console import Group
    from rich.text import Text

    counts = {name: view["tally"][name] for name, _ in _PARTS}
    counts["pending"] += view["undecided"]
    total = sum(counts.values()) or 1
    bar, cells = Text(), 0
    for done, (_, colour) in zip(_running(counts), _PARTS, strict=True):
        upto = round(_BAR_CELLS * done / total)
        bar.append("█" * (upto - cells), style=colour)
        cells = upto
    lines = [
        Text(f"{view['id']}  {names(view['updates'])} → {view['group']}  {view['state']}", style="bold"),
        bar,
    ]
    lines.append(Text(view["headline"]))
    if view["policy"]:
        lines.append(Text(view["policy"]["sentence"], style="bold red" if view["trip"] else ""))
    lines += [
        Text(f"  {row['count']} × {row['sentence']} ({row['fault']})", style="dim")
        for row in view["failures"]
    ]
    if view["rollback"]:
        lines.append(Text(f"Taken back by {view['rollback']}."))
    return Group(*lines)


def _running(counts: dict[str, int]) -> Iterator[int]:
    done = 0
    for name, _ in _PARTS:
        done += counts[name]
        yield done
