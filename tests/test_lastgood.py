"""The command line's door: what it opens, what it leaves alone, and how it ends."""

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import click
import pytest

from lastgood import DOORS, FAILED, OK, STOPPED, USAGE, Door, build, run
from protocol.errors import OperatorError

OUR_DOORS = {"try": Door("opened_by_test_lastgood", "command", "Try it.", "tools")}


@click.command()
@click.option("--how", type=click.Choice(["well", "refused", "stopped", "plain"]), default="well")
def command(how: str) -> None:
    """End in the way that is asked for."""
    if how == "refused":
        raise OperatorError("The group has no member: add one first.")
    if how == "stopped":
        raise KeyboardInterrupt
    if how == "plain":
        click.get_current_context().exit(7)
    click.echo("done")


@pytest.fixture(autouse=True)
def opened() -> Iterator[None]:
    """Make the command above importable under the name that the test's door has."""
    module = ModuleType("opened_by_test_lastgood")
    module.__dict__["command"] = command
    sys.modules[module.__name__] = module
    yield
    del sys.modules[module.__name__]


def test_a_command_that_ends_well_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    """A command is opened by its name, runs, and the exit code is 0."""
    assert run(["try"], OUR_DOORS) == OK
    assert capsys.readouterr().out == "done\n"


def test_our_error_is_one_sentence_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    """A LastgoodError is shown as its sentence on stderr, without a traceback, and the exit code is 1."""
    assert run(["try", "--how", "refused"], OUR_DOORS) == FAILED
    captured = capsys.readouterr()
    assert captured.err == "lastgood: The group has no member: add one first.\n"
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["try", "--how", "badly"], ["no-such-command"], ["try", "--nothing"]])
def test_a_wrong_call_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What click refuses is shown in click's words, and the exit code is 2."""
    assert run(arguments, OUR_DOORS) == USAGE
    assert "Error: " in capsys.readouterr().err


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with one word and the shell's code for it."""
    assert run(["try", "--how", "stopped"], OUR_DOORS) == STOPPED
    assert capsys.readouterr().err.strip() == "lastgood: stopped."


def test_a_command_s_own_exit_code_is_kept() -> None:
    """A command that leaves with a code of its own (a scenario's verdict) is believed."""
    assert run(["try", "--how", "plain"], OUR_DOORS) == 7


@pytest.mark.parametrize(("extra", "wanted"), [("tools", "lastgood[tools]"), (None, "lastgood")])
def test_a_missing_package_is_named(
    extra: str | None, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a package is not installed, one sentence says what to install, and other commands still run."""
    doors = {"poor": Door("surely_not_installed.cli", "command", "Try in vain.", extra), **OUR_DOORS}
    assert run(["try"], doors) == OK
    assert run(["poor"], doors) == FAILED
    sentence = capsys.readouterr().err
    assert f'run `pip install "{wanted}"`' in sentence
    assert sentence.count("\n") == 1


def test_a_missing_module_of_ours_is_a_defect() -> None:
    """A module of ours that is not there is never blamed on what is installed."""
    with pytest.raises(ModuleNotFoundError):
        run(["try"], {"try": Door("agent.surely_missing", "command", "", None)})


def test_the_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints what is installed."""
    assert run(["--version"]) == OK
    assert capsys.readouterr().out.startswith("lastgood 0.")


def test_the_help_names_every_command_and_opens_none() -> None:
    """The help lists all doors from their summaries, and no package of ours but the errors is loaded for it."""
    script = (
        "import sys, lastgood; code = lastgood.run(['--help']);"
        "ours = {'agent', 'cloud_stub', 'simulator', 'inspector', 'pydantic', 'cryptography'} & set(sys.modules);"
        "assert not ours, ours; sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(f"  {name} " in ran.stdout for name in DOORS)


@pytest.mark.parametrize("arguments", [["--help"], ["sim", "check", "configs/scenarios/rollback.toml"]])
def test_a_full_disk_behind_the_output_is_one_sentence(arguments: list[str]) -> None:
    """And exit code 1, as for everything that failed."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 - no file of ours
        ran = subprocess.run(
            [sys.executable, "-m", "lastgood", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 1
    assert ran.stderr.startswith("lastgood: what it prints could not be written: No space left on device.")
    assert ran.stderr.count("\n") == 1


def test_the_agent_needs_only_what_a_device_has() -> None:
    """`lastgood agent` loads nothing of the service, the tools or their dependencies."""
    script = (
        "import sys, lastgood; code = lastgood.run(['agent', '--help']);"
        "foreign = {'cloud_stub', 'simulator', 'inspector', 'fastapi', 'sqlalchemy', 'httpx', 'rich', 'amqtt'};"
        "found = foreign & set(sys.modules); assert not found, found; sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", sorted(DOORS))
def test_every_door_opens(name: str) -> None:
    """Each door leads to a click command with a help of its own."""
    found = build().get_command(click.Context(build()), name)
    assert isinstance(found, click.Command)
    assert found.help
