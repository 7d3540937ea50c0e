"""`lastgood device`: add, list, show and move devices, and ask why one waits."""

from typing import Any

import click

from cloud_stub.cli.client import Cloud, segment
from cloud_stub.cli.options import cloud_options, json_option
from cloud_stub.cli.output import instant, say_facts, say_json, say_table


@click.group(epilog="Exit codes: 0 done, 1 failed or refused, 2 called wrongly, 130 stopped by Ctrl-C.")
def device() -> None:
    """Add, list, show and move devices."""


@device.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option(
    "--renew", is_flag=True, help="Give devices that are known already a new token; the old one ends."
)
@json_option
@cloud_options
def add(cloud: Cloud, ids: tuple[str, ...], renew: bool, as_json: bool) -> None:
    """Make devices known, and print the one line to run on each. Tokens are shown this once."""
    made = cloud.post("devices", {"ids": list(ids), "renew": renew})
    if as_json:
        say_json(made)
        return
    for row in made:
        click.echo(
            f"{row['device']}: run this on the device; it holds a secret and is not shown again:\n  {row['join']}"
        )
    click.echo("Add --config FILE: it says what a device is and runs (see configs/agent.toml).", err=True)


@device.command("list")
@click.option("--group", help="Only those of one group.")
@click.option("--runs", metavar="PROVIDER/NAME:VERSION", help="Only those that run one update.")
@json_option
@cloud_options
def list_(cloud: Cloud, group: str | None, runs: str | None, as_json: bool) -> None:
    """List devices and what they run."""
    rows = cloud.get_all("devices", "id", group=group, runs=runs)
    if as_json:
        say_json(rows)
        return
    say_table(
        ("device", "group", "runs", "doing", "connection", "seen"),
        (
            (
                row["id"],
                row["group"] + (" (override)" if row["group_from"] == "override" else ""),
                row["runs"] or "nothing yet",
                "cloned: holds" if row["cloned"] else row["phase"],
                "online" if row["online"] else "offline",
                instant(row["last_seen_ms"]) or "never",
            )
            for row in rows
        ),
        empty=f"No device runs {runs}." if runs else "No device. Add one with `lastgood device add ID`.",
    )


@device.command()
@click.argument("device_id", metavar="ID")
@json_option
@cloud_options
def show(cloud: Cloud, device_id: str, as_json: bool) -> None:
    """Show one device: its slots, and every assignment it had."""
    row = cloud.get(f"devices/{segment(device_id)}")
    if as_json:
        say_json(row)
        return
    say_facts(
        (
            ("device", row["id"]),
            ("group", f"{row['group']} (by {row['group_from']})"),
            ("class", row["device_class"] or "not reported yet"),
            ("runs", row["runs"] or "nothing yet"),
            ("doing", row["phase"]),
            (
                "ordered",
                (row["ordered"] or "nothing") + (f" by {row['ordered_by']}" if row["ordered_by"] else ""),
            ),
            ("", row["ordered_why"]),
            (
                "connection",
                ("online" if row["online"] else "offline") + (", cloned: holds" if row["cloned"] else ""),
            ),
            ("seen", instant(row["last_seen_ms"]) or "never"),
            ("epoch", f"{row['epoch']}, {_reported(row['reported_epoch'])}"),
            ("floor", row["floor"]),
            ("agent", row["agent_version"]),
        )
    )
    click.echo()
    say_table(("slot", "holds", "update", "marks"), map(_slot, row["slots"]), empty="No slots reported yet.")
    click.echo()
    say_table(
        ("deployment", "update", "attempt", "how it went", "when"),
        (
            (a["deployment"], a["update"], a["attempt"], outcome(a), instant(a["updated_ms"]))
            for a in row["assignments"]
        ),
        empty="No deployment has reached it yet.",
    )


@device.command()
@click.argument("device_id", metavar="ID")
@click.argument("group", required=False)
@click.option("--by-tag", is_flag=True, help="Take the override away: its tag decides again.")
@json_option
@cloud_options
def move(cloud: Cloud, device_id: str, group: str | None, by_tag: bool, as_json: bool) -> None:
    """Put a device into GROUP, whatever its tag says; or with --by-tag back to what its tag says."""
    if (group is None) != by_tag:
        raise click.UsageError("Give either the group, or --by-tag.")
    row = cloud.put(f"devices/{segment(device_id)}/group", {"group": group})
    if as_json:
        say_json(row)
    else:
        click.echo(f"{row['id']} is in group {row['group']} (by {row['group_from']}).")


@device.command()
@click.argument("device_id", metavar="ID")
@json_option
@cloud_options
def why(cloud: Cloud, device_id: str, as_json: bool) -> None:
    """Say which rule a device waits on, the deciding one first."""
    found = cloud.get(f"devices/{segment(device_id)}/why")
    if as_json:
        say_json(found)
        return
    for sentence in found["why"]:
        click.echo(sentence)


def _reported(epoch: int | None) -> str:
    return "none reported yet" if epoch is None else f"reported {epoch}"


def outcome(row: Any) -> str:
    """Return in a few words how an assignment goes."""
    words = str(row["state"])
    if row["state"] == "working":
        words += f": {row['phase']}"
    if row["already_there"]:
        words += ", ran it already"
    if row["state"] == "failed":
        fault = "counted" if row["counted"] else f"not counted, {row['party'] or 'nobody'}'s fault"
        words += f": {row['reason_sentence']} ({row['reason']}; {fault})"
    if row["retry_at_ms"] is not None:
        words += f", tries again at {instant(row['retry_at_ms'])}"
    if row["cancel"]:
        words += f", cancel {row['cancel'].replace('_', ' ')}"
    return words + (", moved on" if row["moved_on"] else "")


def _slot(row: Any) -> tuple[str, str, str, str]:
    marks = [
        "booted" if row["booted"] else "",
        "last known good" if row["last_known_good"] else "",
        f"trial, {row['starts_left']} starts left" if row["trial"] and row["starts_left"] is not None else "",
        row["reason"] or "",
    ]
    return row["name"], row["holds"], row["update"] or "", ", ".join(filter(None, marks))
