"""`lastgood agent`: run the agent, and look at its slots and its state.

It holds no rules; `run` is the one place where the agent's objects are wired together. `status` and `slots` only read
the disk, so they work with and without a running agent. Exit codes: 0 well, 1 a failure that the sentence explains,
2 a wrong use.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from protocol.errors import LastgoodError, OperatorError

if TYPE_CHECKING:
    from agent.adapters.worker import Ports
    from agent.config import AgentSettings, CheckSettings
    from agent.core.model import Slot
    from agent.ports import Application, Check
    from agent.runtime import Runtime

SYSTEM_STATE: Final = Path("/var/lib/lastgood")
USER_STATE: Final = Path("~/.local/state/lastgood")
_STATE = click.option("--state", type=click.Path(path_type=Path), help="The agent's state folder.")
_CONFIG = click.option("--config", type=click.Path(path_type=Path), help="The agent's TOML file.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(name="agent")
def cli() -> None:
    """The device's side: obey signed assignments, and always keep one good slot to go back to."""


@cli.command()
@click.option(
    "--join",
    "join_text",
    metavar="TEXT",
    help="What `lastgood device add` printed; needed once. `-` reads it from standard input, out of sight of `ps`.",
)
@_CONFIG
@_STATE
@click.option(
    "--property",
    "properties",
    multiple=True,
    metavar="NAME=VALUE",
    help="A property of the device; repeatable.",
)
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME=VALUE", help="A tag, such as group=lab; repeatable."
)
def run(
    join_text: str | None,
    config: Path | None,
    state: Path | None,
    properties: tuple[str, ...],
    tags: tuple[str, ...],
) -> None:
    """Work as this device until SIGTERM or Ctrl-C, and print a line for each change."""
    from agent import config as configuration
    from agent.adapters import lock
    from protocol.join import decode_join

    if join_text == "-":
        join_text = sys.stdin.read()
    join = decode_join(join_text) if join_text is not None else None
    folder = configuration.state_of(config, state, _default_state())
    with lock.hold(folder):
        settings = configuration.load(
            folder, config, join, _pairs("--property", properties), _pairs("--tag", tags)
        )
        _say(f"{settings.device} works on {folder}, broker {settings.broker}")
        _run(settings)
    _say("stopped")


@cli.command()
@_CONFIG
@_STATE
@_JSON
def status(config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show what runs, what is being worked on, and what the cloud has not acknowledged yet."""
    folder, report = _look(config, state)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    work, running = report["work"], report["running"]
    click.echo(f"device     {report['device'] or '(not joined)'}")
    click.echo(f"agent      {'running' if report['agent_running'] else 'not running'}, state folder {folder}")
    click.echo(
        f"runs       {running['update'] or 'nothing yet'} (slot {running['slot']}, {running['holds']})"
    )
    click.echo(f"work       {work['state']}{' ' + work['update'] if work['update'] else ''}")
    click.echo(
        f"epoch      {report['epoch'] if report['epoch'] is not None else 'none yet'}, floor {report['floor']}"
    )
    click.echo(f"to report  {len(report['outcomes'])} outcome{'' if len(report['outcomes']) == 1 else 's'}")
    for outcome in report["outcomes"]:
        why = outcome.get("reason") or outcome.get("abandoned")
        attempt = f"{outcome['deployment']} attempt {outcome['attempt']}"
        detail = f": {outcome['detail']}" if outcome.get("detail") else ""
        click.echo(f"           {attempt}: {outcome['result']}{f' ({why})' if why else ''}{detail}")
    if report["record_error"]:
        click.echo(f"record     {report['record_error']}")


@cli.command()
@_CONFIG
@_STATE
@_JSON
def slots(config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show the two slots: what is booted, what is last known good, what each holds."""
    _, report = _look(config, state)
    if as_json:
        click.echo(json.dumps(report["slots"], indent=2))
        return
    rows = [("SLOT", "BOOTED", "HOLDS", "UPDATE", "STARTS LEFT", "LAST KNOWN GOOD")]
    for name, slot in report["slots"].items():
        holds = f"{slot['holds']} ({slot['reason']})" if slot["reason"] else slot["holds"]
        left = "-" if slot["starts_left"] is None else str(slot["starts_left"])
        booted, good = ("yes" if slot[key] else "" for key in ("booted", "last_known_good"))
        rows.append((name, booted, holds, slot["update"] or "-", left, good))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _run(settings: "AgentSettings") -> None:
    """Wire everything together, and work until a signal."""
    from agent.adapters.chance import SystemChance
    from agent.adapters.mqtt import Broker, MqttLink
    from agent.adapters.records import RecordFile
    from agent.core.device import Device
    from agent.core.settings import Settings
    from agent.runtime import Runtime
    from protocol.envelope import TrustedKeys
    from protocol.topics import Topics

    chance = SystemChance()
    ports = _ports(settings)
    core_settings = Settings(
        agent_version=_version(),
        heartbeat_ms=int(settings.heartbeat_s * 1_000),
        needs_cloud=settings.needs_cloud,
        cloud_limit_ms=int(settings.cloud_limit_s * 1_000),
        trial_starts=settings.trial_starts,
        download_tries_max=settings.download_tries,
        handlers=ports.handlers.names,
    )
    keys = TrustedKeys(settings.keys_pem)
    device = Device(settings.device, keys, chance, core_settings, settings.properties, settings.tags)
    runtime = Runtime(device, RecordFile(settings.state / "record.json"), ports, _say)
    broker = Broker(settings.broker, settings.device, settings.token, settings.ca_file)
    link = MqttLink(broker, Topics(settings.prefix), chance, runtime.post, _say)
    _stop_at_signals(runtime)
    runtime.run(link)


def _ports(settings: "AgentSettings") -> "Ports":
    from agent.adapters.directory_slots import DirectorySlots
    from agent.adapters.download import HttpFetcher
    from agent.adapters.handlers import Handlers
    from agent.adapters.health import Watch
    from agent.adapters.trust import SignedAssignmentTrust
    from agent.adapters.worker import Ports

    fetcher = HttpFetcher(rate_bytes_s=settings.download_bytes_s, ca_file=settings.ca_file)
    checks = [(_check(each), each.interval_s) for each in settings.checks]
    return Ports(
        slots=DirectorySlots(settings.slots),
        fetcher=fetcher,
        trust=SignedAssignmentTrust(fetcher),
        handlers=Handlers(),
        application=_application(settings),
        watch=Watch(checks, settings.soak_s, settings.startup_s),
        downloads=settings.state / "downloads",
    )


def _application(settings: "AgentSettings") -> "Application":
    from agent.adapters.application import NoApplication, ProcessApplication, ProcessSettings, SystemdUnit

    told = settings.application
    if told.kind == "systemd":
        return SystemdUnit(told.unit)
    if told.kind == "none":
        return NoApplication()
    return ProcessApplication(
        ProcessSettings(
            command=told.command,
            data=told.data,
            log=settings.state / "application.log",
            pid_file=settings.state / "application.json",
            variables=told.variables,
            stop_s=told.stop_s,
            log_bytes_max=settings.log_bytes,
        )
    )


def _check(told: "CheckSettings") -> "Check":
    from agent.adapters.health import CommandCheck, HttpCheck, SystemdCheck, TcpCheck

    if told.kind == "command":
        return CommandCheck(told.name, told.command, told.timeout_s)
    if told.kind == "http":
        return HttpCheck(told.name, told.url, told.status, told.timeout_s)
    if told.kind == "tcp":
        return TcpCheck(told.name, told.host, told.port, told.timeout_s)
    return SystemdCheck(told.name, told.unit, told.timeout_s)


def _stop_at_signals(runtime: "Runtime") -> None:
    def stop(_number: int, _frame: object) -> None:
        runtime.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    # Started by something that ignores its children, nobody would learn how a check or a script has ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.excepthook = _die_loudly


def _die_loudly(problem: threading.ExceptHookArgs) -> None:
    """A thread that died of a bug leaves half an agent: end, so that the service manager starts a whole one."""
    sys.__excepthook__(problem.exc_type, problem.exc_value or problem.exc_type(), problem.exc_traceback)
    os._exit(1)


def _look(config: Path | None, state: Path | None) -> tuple[Path, dict[str, Any]]:
    """Return the state folder, and what the disk says."""
    from agent import config as configuration

    folder = configuration.state_of(config, state, _default_state())
    try:
        return folder, _report(folder, config)
    except OSError as error:
        raise OperatorError(
            f"The agent's state in {folder} cannot be read ({error.strerror}); look as the user that it runs as."
        ) from error


def _report(folder: Path, config: Path | None) -> dict[str, Any]:
    from agent import config as configuration
    from agent.adapters import lock, toml_file
    from agent.adapters.directory_slots import DirectorySlots
    from agent.adapters.records import RecordFile

    if not folder.is_dir():
        raise OperatorError(
            f"There is no agent's state in {folder}; name its folder with --state, or its agent's file with --config."
        )
    fields: dict[str, Any] = {}
    for path in (folder / configuration.NAME, config):
        if path is not None and path.exists():
            fields |= toml_file.read_toml(path)
    record, problem = None, ""
    try:
        record = RecordFile(folder / "record.json").load()
    except LastgoodError as error:
        problem = str(error)
    root = folder / toml_file.Table("", fields).table("slots").text("folder", "slots")
    if not root.is_dir():
        raise OperatorError(
            f"There are no slots in {root} yet; start the agent once with `lastgood agent run`."
        )
    table = DirectorySlots(root).probe()
    order = record.workflow.order if record else None
    return {
        "device": fields.get("device"),
        "agent_running": lock.is_held(folder),
        "running": {"slot": table.booted, **_slot(table.running)},
        "slots": {
            name: {
                **_slot(slot),
                "booted": name == table.booted,
                "last_known_good": name == table.last_known_good,
            }
            for name, slot in sorted(table.slots.items())
        },
        "work": {
            "state": str(record.workflow.state) if record else "idle",
            "update": order.target.update if order and order.target else None,
            "epoch": order.epoch if order else None,
        },
        "epoch": record.epoch if record else None,
        "floor": record.floor if record else 0,
        "outcomes": [each.model_dump(mode="json", exclude_none=True) for _, each in record.outcomes]
        if record
        else [],
        "record_error": problem,
    }


def _slot(slot: "Slot") -> dict[str, Any]:
    return {
        "holds": str(slot.holds),
        "update": slot.update,
        "sha256": slot.sha256,
        "release_counter": slot.release_counter,
        "starts_left": slot.starts_left,
        "reason": slot.reason,
    }


def _pairs(option: str, given: tuple[str, ...]) -> Mapping[str, str]:
    pairs = [each.partition("=") for each in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise OperatorError(f"{option} wants NAME=VALUE, and got {name!r}.")
    return {name: value for name, _, value in pairs}


def _default_state() -> Path:
    return SYSTEM_STATE if os.geteuid() == 0 else USER_STATE.expanduser()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lastgood")
    except PackageNotFoundError:
        return "0"


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # a log on a full disk is no reason to stop working
        click.echo(f"{time.strftime('%H:%M:%S')} {sentence}")
        sys.stdout.flush()
