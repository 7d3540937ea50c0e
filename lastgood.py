"""The command line `lastgood`: one door to every package.

It holds no command of its own and no rule. Each command lives in the package it belongs to, and is opened by name when
it is asked for: `lastgood agent status` on a device never loads the update service, nor needs what that needs.

Exit codes: 0 done, 1 failed or refused (one sentence on stderr says why), 2 called wrongly, 130 stopped by Ctrl-C.
"""

import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import click

from protocol.errors import LastgoodError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
STOPPED: Final = 130
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Door:
    """Where a command lives, what it is for, and the extra that brings what it needs (None: the base does)."""

    module: str
    attribute: str
    summary: str
    extra: str | None


DOORS: Final[Mapping[str, Door]] = {
    "agent": Door("agent.cli", "cli", "Run the agent on a device, and look at its slots.", None),
    "cloud": Door("cloud_stub.cli.cloud", "cloud", "Start and keep the update service.", "cloud"),
    "demo": Door(
        "simulator.demo.command", "demo", "Watch an update reach a fleet, fail, and be taken back.", "sim"
    ),
    "deploy": Door(
        "cloud_stub.cli.deploy", "deploy", "Offer an update to a group, follow it, stop it.", "tools"
    ),
    "device": Door("cloud_stub.cli.device", "device", "Add, list, show and move devices.", "tools"),
    "group": Door("cloud_stub.cli.group", "group", "List and show groups.", "tools"),
    "mqtt": Door("inspector.cli", "mqtt", "Look at what crosses MQTT.", "tools"),
    "sim": Door("simulator.cli", "sim", "Rehearse a rollout on a simulated fleet.", "sim"),
    "update": Door("cloud_stub.cli.update", "update", "Import, list and show updates.", "tools"),
}


class Opener(click.Group):
    """A group whose commands are imported when asked for, and never for its own help."""

    def __init__(self, name: str, doors: Mapping[str, Door], *, help: str, epilog: str) -> None:  # noqa: A002 - click's word
        super().__init__(name, help=help, epilog=epilog)
        self.doors = doors

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of the alphabet, without importing one."""
        return sorted(self.doors)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the package of `cmd_name`, and return its command; None when there is no such command."""
        door = self.doors.get(cmd_name)
        if door is None:
            return None
        command: click.Command = getattr(importlib.import_module(door.module), door.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help's list of commands from the doors' own summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.doors[name].summary) for name in self.list_commands(ctx)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code; `arguments` are the process's own unless given."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str], doors: Mapping[str, Door] = DOORS) -> int:
    """Run one command and return its exit code (the table is in the module's docstring)."""
    try:
        result = build(doors).main(args=list(arguments), prog_name="lastgood", standalone_mode=False)
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.ClickException as refused:
        refused.show()
        return refused.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("stopped.")
        return STOPPED
    except LastgoodError as error:
        _say(str(error))
        return FAILED
    except ModuleNotFoundError as missing:
        if _is_ours(missing.name):
            raise  # a defect, and no matter of what is installed
        _say(_what_to_install(arguments, doors, missing))
        return FAILED
    except BrokenPipeError:
        # The reader of our output has left (`lastgood … | head`). Python's own flush at exit must find no pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # The disk that its output goes to: what fails inside lastgood is told by an error of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _say(
            f"what it prints could not be written: {error.strerror}. Free some space, and look at what was done."
        )
        return FAILED
    return result if isinstance(result, int) else OK


def build(doors: Mapping[str, Door] = DOORS) -> click.Group:
    """Return the command `lastgood`, with nothing opened yet."""
    group = Opener(
        "lastgood",
        doors,
        help="Deliver updates to fleets of devices over MQTT, and go back to the last known good.",
        epilog="Exit codes: 0 done, 1 failed or refused, 2 called wrongly, 130 stopped by Ctrl-C.",
    )
    return click.version_option(package_name="lastgood", message="lastgood %(version)s")(group)


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in {
        door.module.partition(".")[0] for door in DOORS.values()
    }


def _what_to_install(
    arguments: Sequence[str], doors: Mapping[str, Door], missing: ModuleNotFoundError
) -> str:
    name = next(word for word in arguments if word in doors)
    extra = doors[name].extra
    wanted = "lastgood" if extra is None else f"lastgood[{extra}]"
    return (
        f"`lastgood {name}` needs the Python package {missing.name!r}, which is not installed: "
        f'run `pip install "{wanted}"`.'
    )


def _say(sentence: str) -> None:
    click.echo(f"lastgood: {sentence}", err=True)


if __name__ == "__main__":
    main()
