"""Write the pages of `docs/` that are made from the code: lifecycles, topics, the command line.

A page here is a pure function of the code, listed in `PAGES`; a test makes each anew and compares (tests/test_docs.py).
To add one, write a function that returns its text and list it. Run by `make docs`.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

import click

import lastgood
from protocol.lifecycle import DEPLOYMENT, PAST_NO_RETURN, WORKFLOW, DeploymentState, WorkflowState
from protocol.topics import EVERYONE, RULES, Topics

HERE: Final = Path(__file__).resolve().parent
HELP_WIDTH: Final = 100  # columns, whatever the terminal is
MADE: Final = "<!-- Made by `make docs` from {source}: change that, not this page. -->\n"


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")


def lifecycles() -> str:
    """Draw the two tables of protocol/lifecycle.py, and list every move."""
    deployment = [(state, event, to) for state, row in DEPLOYMENT.items() for event, to in row.items()]
    final = [state for state, row in DEPLOYMENT.items() if not row]
    work = [
        (state, event, to)
        for state, row in WORKFLOW.items()
        for event, tos in row.items()
        for to in sorted(tos)
    ]
    committed = ", ".join(f"`{state}`" for state in WorkflowState if state in PAST_NO_RETURN)
    return "\n".join(
        [
            "# Lifecycles",
            "",
            MADE.format(source="`protocol/lifecycle.py`"),
            "## A deployment, in the cloud",
            "",
            *_diagram(deployment, DeploymentState.SCHEDULED, final),
            "## An attempt, on a device",
            "",
            f"From {committed} there is no way to stop: a cancel is answered `too_late`,",
            "and a failure is the update's. Moves that stay in their state are in the table alone.",
            "",
            *_diagram([move for move in work if move[0] != move[2]], WorkflowState.IDLE, []),
            *_table(
                ("state", "event", "next"), ((state, event, _next(tos)) for state, event, tos in _rows())
            ),
        ]
    )


def topics() -> str:
    """List every kind of message with its topic, from protocol/topics.py."""
    named = Topics()
    rows = (
        (
            f"`{named.build(kind, EVERYONE if kind == 'sync' else 'DEVICE')}`",
            rule.publisher,
            str(rule.qos),
            rule.what,
        )
        for kind, rule in RULES.items()
    )
    head = ["# Topics", "", MADE.format(source="`protocol/topics.py`")]
    return "\n".join([*head, *_table(("topic", "who publishes", "QoS", "what"), rows)])


def command_line() -> str:
    """Print the help of every command, as click prints it."""
    root = lastgood.build()
    parts = ["# The command line", "", MADE.format(source="the commands' own help")]
    parts += _help(root, click.Context(root, info_name="lastgood", terminal_width=HELP_WIDTH))
    return "\n".join(parts)


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "lifecycles.md": lifecycles,
    "topics.md": topics,
    "cli.md": command_line,
}


def _rows() -> Iterable[tuple[str, str, frozenset[WorkflowState]]]:
    return ((state, event, tos) for state, row in WORKFLOW.items() for event, tos in row.items())


def _next(states: frozenset[WorkflowState]) -> str:
    return " or ".join(state for state in WorkflowState if state in states)


def _diagram(
    moves: Iterable[tuple[StrEnum, StrEnum, StrEnum]], first: StrEnum, final: Iterable[StrEnum]
) -> list[str]:
    """Draw a state diagram in which all events between the same two states share one arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for state, event, to in moves:
        arrows.setdefault((state, to), []).append(event)
    lines = [f"    {state} --> {to}: {', '.join(events)}" for (state, to), events in arrows.items()]
    ends = [f"    {state} --> [*]" for state in final]
    return ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *lines, *ends, "```", ""]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines] + [""]


def _help(command: click.Command, context: click.Context) -> list[str]:
    """Print one command's help, then its children's, each under its full name."""
    parts = [f"## `{context.command_path}`", "", "```text", command.get_help(context), "```", ""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if context.parent is None and not _is_here(name):
                continue
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                parts += _help(
                    child, click.Context(child, context, info_name=name, terminal_width=HELP_WIDTH)
                )
    return parts


def _is_here(name: str) -> bool:
    """Tell whether a door leads somewhere; that each does is held by tests/test_lastgood.py."""
    try:
        return importlib.util.find_spec(lastgood.DOORS[name].module) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
