"""`lastgood mqtt`: look at the messages between devices and cloud, live or recorded.

It is not where anything is decoded or laid out (`core/`). It keeps the rule that objects are wired together
here alone, that messages go to standard output, and everything else to standard error. Exit codes: 0 the
stream ended (Ctrl-C is how a live one ends), 1 broker or file cannot be read, 2 the command was not
understood.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Final, ParamSpec, Protocol

import click
from click.core import ParameterSource

from inspector.adapters.broker import BrokerSource
from inspector.adapters.files import address_from_data_folder, keys_from_file, lines_of
from inspector.core.address import Address
from inspector.core.numbers import many, span
from inspector.core.pick import Pick, check_glob
from inspector.core.seen import Seen, decode, from_json, to_json
from inspector.core.sequence import Mermaid, Sequence
from inspector.core.source import Notice, Source
from inspector.core.tail import Tail
from inspector.core.text import Pieces, escape, paint
from protocol.envelope import TrustedKeys
from protocol.errors import MessageRefused
from protocol.identity import check_device_id
from protocol.topics import DEFAULT_PREFIX, Kind, Topics, check_prefix

POLL_S: Final = 0.2  # how late `--for` may end, at most
LEFT_OUT_TOLD_MAX: Final = 5  # lines of a recording: a file of another kind has thousands
DEFAULT_DATA: Final = "./lastgood-data"

P = ParamSpec("P")


@click.group("mqtt")
def mqtt() -> None:
    """Look at what crosses MQTT between devices and cloud."""


def _broker_options(command: Callable[P, None]) -> Callable[P, None]:
    for option in reversed(
        (
            click.option(
                "--broker", metavar="URL", envvar="LASTGOOD_BROKER", help="mqtt://user:password@host:port"
            ),
            click.option(
                "--data",
                type=click.Path(path_type=Path),
                default=DEFAULT_DATA,
                envvar="LASTGOOD_DATA",
                show_default=True,
                show_envvar=True,
                help="Data folder of the cloud whose broker is meant, when --broker is not given.",
            ),
            click.option(
                "--prefix", help=f"Prefix of all topics.  [default: the cloud's, or {DEFAULT_PREFIX}]"
            ),
            click.option(
                "--key",
                type=click.Path(path_type=Path, dir_okay=False),
                help="The cloud's public key (PEM), to verify assignments with.  [default: the one in --data]",
            ),
            click.option(
                "--ca",
                type=click.Path(path_type=Path, dir_okay=False, exists=True),
                help="PEM file of the authority that signed the broker's certificate, for mqtts://.",
            ),
            click.option("--count", type=click.IntRange(min=1), help="End after this many messages."),
            click.option(
                "--for",
                "for_s",
                type=click.FloatRange(min=0, min_open=True),
                help="End after this many seconds.",
            ),
        )
    ):
        command = option(command)
    return command


@mqtt.command("tail")
@_broker_options
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="GLOB",
    help="Only these devices, such as 'pi-*'; repeatable.",
)
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice([kind.value for kind in Kind]), help="Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line; `seq --from` reads it back.")
def tail(
    broker: str | None,
    data: Path,
    prefix: str | None,
    key: Path | None,
    ca: Path | None,
    count: int | None,
    for_s: float | None,
    devices: tuple[str, ...],
    kinds: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show messages as they cross the broker, decoded."""
    address = _address(broker, data, prefix, ca)
    pick = Pick(tuple(map(check_glob, devices)), tuple(Kind(kind) for kind in kinds))
    view: _View = _JsonView() if as_json else _TailView(Tail(_zone(), _columns()))
    live = _Live(BrokerSource(address, pick.filters(address.prefix)), address, key, pick)
    _show(live.messages(for_s), view, count)


@mqtt.command("seq")
@click.argument("device")
@_broker_options
@click.option(
    "--from", "recording", metavar="FILE", help="Read what `tail --json` wrote instead; - is standard input."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with `after_ms`.")
@click.option("--mermaid", is_flag=True, help="Print a mermaid sequenceDiagram.")
def seq(
    device: str,
    broker: str | None,
    data: Path,
    prefix: str | None,
    key: Path | None,
    ca: Path | None,
    count: int | None,
    for_s: float | None,
    recording: str | None,
    as_json: bool,
    mermaid: bool,
) -> None:
    """Show DEVICE's conversation with the cloud as a sequence, with the time between messages."""
    check_device_id(device)
    if as_json and mermaid:
        raise click.UsageError("--json and --mermaid are two formats: choose one.")
    pick = Pick((device,))
    view: _View
    if as_json:
        view = _JsonView(with_after=True)
    elif mermaid:
        view = _MermaidView(Mermaid(device))
    else:
        view = _SequenceView(Sequence(device, _zone(), _columns() or 100))
    if recording is not None:
        source = click.get_current_context().get_parameter_source("broker")
        asked = broker is not None and source is not ParameterSource.ENVIRONMENT
        if asked or any(option is not None for option in (key, ca, for_s, prefix)):
            raise click.UsageError(
                "--from reads a file: --broker, --prefix, --key, --ca and --for have nothing to act on."
            )
        _show(_recorded(recording, pick, device), view, count)
        return
    address = _address(broker, data, prefix, ca)
    live = _Live(BrokerSource(address, pick.filters(address.prefix)), address, key, pick)
    _show(live.messages(for_s), view, count)


class _View(Protocol):
    """How messages are printed."""

    def begin(self) -> None: ...

    def show(self, seen: Seen) -> None: ...


class _TailView:
    def __init__(self, layout: Tail) -> None:
        self._layout = layout
        self._colour = _colour()

    def begin(self) -> None:
        return

    def show(self, seen: Seen) -> None:
        _print_pieces(self._layout.lines(seen), self._colour)


class _SequenceView:
    def __init__(self, layout: Sequence) -> None:
        self._layout = layout
        self._colour = _colour()

    def begin(self) -> None:
        _print_pieces(self._layout.head(), self._colour)

    def show(self, seen: Seen) -> None:
        _print_pieces(self._layout.lines(seen), self._colour)


class _MermaidView:
    def __init__(self, layout: Mermaid) -> None:
        self._layout = layout

    def begin(self) -> None:
        _print_lines(self._layout.head())

    def show(self, seen: Seen) -> None:
        _print_lines(self._layout.lines(seen))


class _JsonView:
    def __init__(self, *, with_after: bool = False) -> None:
        self._with_after = with_after
        self._before_ms: int | None = None

    def begin(self) -> None:
        return

    def show(self, seen: Seen) -> None:
        line: dict[str, Any] = to_json(seen)
        if self._with_after:
            line["after_ms"] = None if self._before_ms is None else seen.at_ms - self._before_ms
            self._before_ms = seen.at_ms
        _print_lines([json.dumps(line)])


class _Live:
    """Messages from a broker, picked and decoded, until the time is over."""

    def __init__(self, source: Source, address: Address, key: Path | None, pick: Pick) -> None:
        self._source = source
        self._topics = Topics(address.prefix)
        self._keys = _keys(key, address)
        self._pick = pick

    def messages(self, for_s: float | None) -> Generator[Seen, None, None]:
        _note(f"listening to {self._source.open()}")
        ends_at = None if for_s is None else time.monotonic() + for_s
        try:
            while ends_at is None or time.monotonic() < ends_at:
                left = POLL_S if ends_at is None else max(0.0, min(POLL_S, ends_at - time.monotonic()))
                event = self._source.next(left)
                if isinstance(event, Notice):
                    _note(event.sentence)
                elif event is not None:
                    seen = decode(event, self._topics, self._keys)
                    if self._pick.keeps(seen):
                        yield seen
        finally:
            self._source.close()


def _recorded(name: str, pick: Pick, device: str) -> Generator[Seen, None, None]:
    others: set[str] = set()
    found, left_out = False, 0
    for number, line in enumerate(lines_of(name), start=1):
        try:
            seen = from_json(line)
        except MessageRefused as error:
            left_out += 1
            if left_out <= LEFT_OUT_TOLD_MAX:
                _note(f"line {number} is left out: {error}")
            continue
        if pick.keeps(seen):
            found = found or seen.device == device
            yield seen
        elif seen.device:
            others.add(seen.device)
    if left_out > LEFT_OUT_TOLD_MAX:
        _note(f"{left_out} lines are left out in all; is {name} what `lastgood mqtt tail --json` wrote?")
    if not found:
        known = ", ".join(escape(other) for other in sorted(others)[:10]) or "none"
        _note(f"{name} has no message of {device}; devices in it: {known}{' …' if len(others) > 10 else ''}")


def _show(messages: Generator[Seen, None, None], view: _View, count: int | None) -> None:
    shown, refused = 0, 0
    began = time.monotonic()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a terminal that lacks an arrow shows ? rather than a traceback
    try:
        for seen in messages:
            if shown == 0:
                view.begin()
            view.show(seen)
            shown += 1
            refused += seen.refused
            if shown == count:
                break
    except BrokenPipeError:
        # `| head` has enough. Python's own flush at exit must find no pipe either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        click.echo(err=True)  # the terminal has printed ^C: begin a line of our own
    finally:
        messages.close()
    _note(f"{many(shown, 'message')}, {refused} refused, in {span(int(1000 * (time.monotonic() - began)))}")


def _keys(key: Path | None, address: Address) -> TrustedKeys | None:
    if key is not None:
        return keys_from_file(key)
    return TrustedKeys([address.key_pem]) if address.key_pem else None


def _address(broker: str | None, data: Path, prefix: str | None, ca: Path | None) -> Address:
    address = Address.of_url(broker) if broker is not None else address_from_data_folder(data)
    if ca is not None:
        address = replace(address, ca_file=str(ca))
    return address if prefix is None else replace(address, prefix=check_prefix(prefix))


def _print_pieces(lines: list[Pieces], colour: bool) -> None:
    _print_lines([paint(line, colour=colour).rstrip() for line in lines])


def _print_lines(lines: list[str]) -> None:
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()


def _note(sentence: str) -> None:
    """Say something beside the messages, on standard error."""
    click.echo(click.style(f"— {sentence}", dim=True), err=True)


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _columns() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _zone() -> tzinfo:
    return datetime.now().astimezone().tzinfo or UTC


if __name__ == "__main__":
    mqtt()
