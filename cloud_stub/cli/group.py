"""`lastgood group`: which groups there are, and what they run."""

from typing import Any

import click

from cloud_stub.cli.client import Cloud, segment
from cloud_stub.cli.options import cloud_options, json_option
from cloud_stub.cli.output import say_facts, say_json, say_table


@click.group(epilog="Exit codes: 0 done, 1 failed or refused, 2 called wrongly, 130 stopped by Ctrl-C.")
def group() -> None:
    """List and show groups."""


@group.command("list")
@json_option
@cloud_options
def list_(cloud: Cloud, as_json: bool) -> None:
    """List groups with what they run."""
    rows = cloud.get("groups")
    if as_json:
        say_json(rows)
        return
    say_table(
        ("group", "#devices", "#online", "runs", "active deployment"),
        ((row["group"], row["members"], row["online"], _runs(row), _active(row)) for row in rows),
        empty="No group yet: a group is there as soon as a device is in it. Add one with `lastgood device add ID`.",
    )


@group.command()
@click.argument("name", metavar="GROUP")
@json_option
@cloud_options
def show(cloud: Cloud, name: str, as_json: bool) -> None:
    """Show one group: its device classes, and what they run."""
    row = cloud.get(f"groups/{segment(name)}")
    if as_json:
        say_json(row)
        return
    say_facts(
        (
            ("group", row["group"]),
            ("devices", f"{row['members']}, of which {row['online']} online"),
            ("runs", _runs(row)),
            ("active deployment", _active(row) or "none"),
        )
    )
    click.echo()
    say_table(
        ("class", "#devices", "#floor"),
        ((found["device_class"], found["members"], found["floor_max"]) for found in row["classes"]),
        empty="No device has reported its class yet.",
    )


def _runs(row: Any) -> str:
    return ", ".join(f"{run['update'] or 'nothing yet'} ({run['count']})" for run in row["runs"])


def _active(row: Any) -> str:
    return f"{row['active']}: {', '.join(row['offers'])}" if row["active"] else ""
