"""`lastgood deploy`: plan, create, list, show, watch, cancel and retry deployments."""

import re
import sys
from collections.abc import Callable
from typing import Any, Final

import click

from cloud_stub.cli.client import Cloud, segment
from cloud_stub.cli.device import outcome
from cloud_stub.cli.options import Duration, cloud_options, json_option, start_of
from cloud_stub.cli.output import counted, instant, names, say_facts, say_json, say_table
from cloud_stub.cli.watching import watch_deployment
from protocol.errors import OperatorError

STATES: Final = ("scheduled", "active", "superseded", "canceled", "rolled_back")
_ID: Final = re.compile(r"d[1-9][0-9]{0,17}")
_POLICY: Final = ("--failed-percent", "--failed-count", "--rollback-to")


@click.group(
    epilog="Exit codes: 0 done, 1 failed or refused, 2 called wrongly, 3 rolled back (watch), 130 stopped by Ctrl-C."
)
def deploy() -> None:
    """Offer an update to a group, follow it, stop it."""


def draft_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments that make a deployment: the same for `plan` and for `create`."""
    times = Duration()
    options: list[Callable[..., Any]] = [
        click.argument("group"),
        click.argument("update"),
        click.option("--update", "more", multiple=True, metavar="UPDATE", help="One more, for another device class."),
        click.option("--failed-percent", type=int, metavar="1-100", help="Policy: go back when so many % failed."),
        click.option("--failed-count", type=int, metavar="N", help="Policy: and when at least so many failed."),
        click.option("--rollback-to", multiple=True, metavar="UPDATE",
                     help="Policy: what to go back to; once, or once for each device class."),
        click.option("--match", type=click.Choice(["all", "any"]), help="Whether both must hold, or one. [all]"),
        click.option("--percent-of", type=click.Choice(["group", "attempted"]),
                     help="What the percentage is of: compatible members, or devices that tried. [group]"),
        click.option("--at", help="When it starts: 2026-12-01T08:30+01:00, or +30m. [now]"),
        click.option("--retries", type=int, default=0, show_default=True, help="Automatic retries of each device."),
        click.option("--retry-delay", type=times, default="60s", show_default=True, help="Wait before it; doubles."),
        click.option("--device-timeout", type=times, default="1h", show_default=True,
                     help="A device that began and is silent for so long has failed."),
        click.option("--attempt-timeout", type=times, default="2h", show_default=True,
                     help="A device that makes no headway for so long has failed."),
        click.option("--allow-downgrade", is_flag=True, help="Also to devices that run a newer version."),
        click.option("--allow-withdrawn", is_flag=True, help="Also if the update was withdrawn."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@deploy.command()
@draft_options
@json_option
@cloud_options
def plan(cloud: Cloud, as_json: bool, **options: Any) -> None:
    """Say what offering UPDATE to GROUP would do, and change nothing."""
    draft = _draft(cloud, options)
    found = cloud.post("deployments/plan", draft)
    if as_json:
        say_json(found)
    else:
        _say_plan(found, draft["start_at_ms"])


@deploy.command()
@draft_options
@click.option("--yes", is_flag=True, help="Create it without asking.")
@json_option
@cloud_options
def create(cloud: Cloud, as_json: bool, yes: bool, **options: Any) -> None:
    """Offer UPDATE to GROUP: shows the plan, asks once, and creates exactly what was shown."""
    if not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError(
            "There is nobody to ask here; look with `lastgood deploy plan`, and create with --yes."
        )
    draft = _draft(cloud, options)
    found = cloud.post("deployments/plan", draft)
    if not as_json:
        _say_plan(found, draft["start_at_ms"])
    if not yes and not click.confirm("Create it?"):
        raise OperatorError("Nothing was created.")
    made = cloud.post("deployments", {"draft": draft, "plan_digest": found["digest"]})
    if as_json:
        say_json(made)
    else:
        click.echo(
            f"Deployment {made['id']} is {made['state']}. Follow it with:  lastgood deploy watch {made['id']}"
        )


@deploy.command("list")
@click.option("--group", help="Only those of one group.")
@click.option("--state", multiple=True, type=click.Choice(STATES), help="Only those in a state.")
@json_option
@cloud_options
def list_(cloud: Cloud, group: str | None, state: tuple[str, ...], as_json: bool) -> None:
    """List deployments, the newest first."""
    rows = cloud.get("deployments", group=group, state=list(state))
    if as_json:
        say_json(rows)
        return
    say_table(
        ("deployment", "group", "update", "state", "#succeeded", "#failed", "#open", "made"),
        (
            (
                row["id"],
                row["group"],
                names(row["updates"]),
                row["state"] + _aside(row),
                row["tally"]["succeeded"],
                row["tally"]["failed"],
                row["tally"]["pending"] + row["tally"]["working"],
                instant(row["created_ms"]),
            )
            for row in rows
        ),
        empty="No deployment. Make one with `lastgood deploy create GROUP UPDATE`.",
    )


@deploy.command()
@click.argument("deployment")
@click.option("--devices", is_flag=True, help="Also list how each device does.")
@json_option
@cloud_options
def show(cloud: Cloud, deployment: str, devices: bool, as_json: bool) -> None:
    """Show one deployment with its policy's numbers and why devices failed."""
    row = cloud.get(_path(deployment))
    rows = cloud.get_all(f"{_path(deployment)}/devices", "device") if devices else []
    if as_json:
        say_json({**row, "devices": rows} if devices else row)
        return
    _say_deployment(row)
    if devices:
        click.echo()
        cells = (
            (found["device"], found["attempt"], outcome(found), instant(found["updated_ms"]))
            for found in rows
        )
        say_table(("device", "attempt", "how it goes", "when"), cells, empty="No device.")


@deploy.command()
@click.argument("deployment")
@click.option(
    "--timeout", "timeout_ms", type=Duration(), help="Give up after so long, with exit code 1. [never]"
)
@json_option
@cloud_options
@click.pass_context
def watch(ctx: click.Context, cloud: Cloud, deployment: str, timeout_ms: int | None, as_json: bool) -> None:
    """Follow a deployment until it is settled or has ended.

    Exit codes: 0 settled with every device well, 1 settled with failures, canceled or superseded, 3 rolled back.
    With --json one object a line.
    """
    ctx.exit(watch_deployment(cloud, f"{_path(deployment)}/events", timeout_ms, as_json))


@deploy.command()
@click.argument("deployment")
@json_option
@cloud_options
def cancel(cloud: Cloud, deployment: str, as_json: bool) -> None:
    """End a deployment for good; what is installed stays installed."""
    row = cloud.post(f"{_path(deployment)}/cancel")
    if as_json:
        say_json(row)
    else:
        told = " Devices past the switch run to their verdict." if row["started_ms"] is not None else ""
        click.echo(f"Deployment {row['id']} is {row['state']}.{told}")


@deploy.command()
@click.argument("deployment")
@click.option(
    "--device", "devices", multiple=True, metavar="ID", help="Only this one; can be given again. [all failed]"
)
@json_option
@cloud_options
def retry(cloud: Cloud, deployment: str, devices: tuple[str, ...], as_json: bool) -> None:
    """Give every failed device, or the named ones, a new attempt."""
    row = cloud.post(f"{_path(deployment)}/retry", {"devices": list(devices)})
    if as_json:
        say_json(row)
    elif not row["retried"]:
        click.echo("No device has failed; there is nothing to retry.")
    else:
        click.echo(
            f"{counted(row['retried'], 'new attempt')}. Follow with:  lastgood deploy watch {deployment}"
        )


@deploy.command()
@click.option("--yes", is_flag=True, help="Go on without asking.")
@json_option
@cloud_options
def resume(cloud: Cloud, yes: bool, as_json: bool) -> None:
    """Go on after the cloud's data was restored from an old backup: lists what would be ordered, and asks."""
    if not any(alert["kind"] == "restored" for alert in cloud.get("overview")["alerts"]):
        raise OperatorError(
            "The cloud's data was not restored from an older backup; there is nothing to resume."
        )
    if not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("There is nobody to ask here; go on with --yes.")
    rows = cloud.get("deployments", state=["active"])
    if not as_json:
        cells = ((row["group"], names(row["updates"]), row["id"]) for row in rows)
        say_table(
            ("group", "would be ordered", "deployment"),
            cells,
            empty="Nothing is active: every device would hold.",
        )
    if not yes and not click.confirm("Order this?"):
        raise OperatorError("Nothing was ordered.")
    found = cloud.post("restored/resume")
    if as_json:
        say_json(found)
    else:
        click.echo(f"New orders for {counted(found['resumed'], 'device')}.")


def _aside(row: Any) -> str:
    if row["cause"]:
        return f" (rollback of {row['cause']})"
    return f" (starts {instant(row['start_at_ms'])})" if row["state"] == "scheduled" else ""


def _draft(cloud: Cloud, options: dict[str, Any]) -> dict[str, Any]:
    given = {
        "--failed-percent": options["failed_percent"] is not None,
        "--failed-count": options["failed_count"] is not None,
        "--rollback-to": bool(options["rollback_to"]),
    }
    missing = [name for name in _POLICY if not given[name]]
    wants_policy = any(given.values()) or options["match"] or options["percent_of"]
    if wants_policy and missing:
        raise click.UsageError(
            f"The policy lacks {' and '.join(missing)}; give {', '.join(_POLICY)} together, or none for no policy."
        )
    policy = {
        "failed_percent": options["failed_percent"],
        "failed_count": options["failed_count"],
        "rollback_to": list(options["rollback_to"]),
        "match": options["match"] or "all",
        "percent_of": options["percent_of"] or "group",
    }
    return {
        "group": options["group"],
        "updates": [options["update"], *options["more"]],
        "policy": policy if wants_policy else None,
        "start_at_ms": start_of(options["at"], cloud),
        "retries": options["retries"],
        "retry_delay_ms": options["retry_delay"],
        "device_timeout_ms": options["device_timeout"],
        "attempt_timeout_ms": options["attempt_timeout"],
        "allow_downgrade": options["allow_downgrade"],
        "allow_withdrawn": options["allow_withdrawn"],
    }


def _say_plan(found: Any, start_at_ms: int | None) -> None:
    unknown = f", {found['unknown_class']} not reported yet" if found["unknown_class"] else ""
    say_facts(
        (
            ("group", f"{found['group']}: {counted(found['members'], 'device')}{unknown}"),
            ("update", names(found["updates"])),
            ("would be updated", found["to_update"]),
            ("run it already", found["already_there"]),
            ("would refuse it", found["refuse"] or ""),
            ("incompatible", found["incompatible"]),
            ("starts", instant(start_at_ms) if start_at_ms else ""),
            ("policy", found["policy_sentence"]),
            *(("warning", sentence) for sentence in found["warnings"]),
        )
    )
    click.echo()
    say_table(
        ("class", "#devices", "gets", "#run it already", "would go back to"),
        (
            (
                row["device_class"],
                row["members"],
                row["why_not"] or row["update"],
                row["already_there"],
                row["back_to"],
            )
            for row in found["classes"]
        ),
        empty="No device of the group has reported yet; devices get the update as they join.",
    )
    click.echo()


def _say_deployment(row: Any) -> None:
    say_facts(
        (
            ("deployment", row["id"]),
            ("update", names(row["updates"])),
            ("group", row["group"]),
            ("state", row["state"] + (", settled" if row["settled"] else "")),
            ("progress", row["headline"]),
            ("policy", row["policy"]["sentence"] if row["policy"] else "none"),
            ("", row["policy"]["rule"] if row["policy"] else ""),
            ("made", f"{instant(row['created_ms'])} by {row['created_by']}"),
            ("starts", instant(row["start_at_ms"]) if row["started_ms"] is None else ""),
            (
                "ended",
                ": ".join(filter(None, (instant(row["ended_ms"]), row["ended_why"]))),
            ),
            *((label, row[name]) for name, label in _LINKS),
        )
    )
    if row["failures"]:
        click.echo()
        cells = (
            (found["count"], found["sentence"], found["fault"], ", ".join(found["devices"]))
            for found in row["failures"]
        )
        say_table(("#devices", "what happened", "whose fault", "such as"), cells, empty="")


_LINKS: Final = (
    ("supersedes", "supersedes"),
    ("superseded_by", "superseded by"),
    ("cause", "rollback of"),
    ("rollback", "taken back by"),
)


def _path(deployment: str) -> str:
    if not _ID.fullmatch(deployment):
        raise OperatorError(f"{deployment!r} is no deployment, such as d1; see `lastgood deploy list`.")
    return f"deployments/{segment(deployment)}"
