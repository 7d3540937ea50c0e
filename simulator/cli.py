"""`lastgood sim`: rehearse a rollout on a simulated fleet, live on MQTT or in virtual time.

It wires the parts together and holds no rule. Exit codes: 0 everything expected held, 1 something did not (or the run
could not be made), 2 called wrongly, a scenario file that is not valid included.
"""

import contextlib
import json
import logging
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource
from rich.console import Console

from protocol.errors import LastgoodError, OperatorError
from simulator.core.facts import DeviceSight
from simulator.core.fleet import Member, failures, members
from simulator.core.invariants import InvariantBroken
from simulator.core.model import model_of, settings_of
from simulator.core.play import Ending, Play
from simulator.core.scenario import Scenario, read_scenario
from simulator.live.cloud import CloudApi, OwnCloud, client_file
from simulator.live.fleet import FleetOptions, LiveFleet
from simulator.live.show import Display, table
from simulator.live.stage import LiveStage
from simulator.signals import end_like_ctrl_c
from simulator.virtual.world import VirtualWorld

LOOK_S: Final = 0.2  # between two looks at the fleet, at least: far below what a person sees
LOOKS_MOST: Final = 0.2  # of the time is looked, at most, and up to this pause: a look asks the cloud, too
LOOK_LAST_S: Final = 2.0
HELD: Final = 0
NOT_HELD: Final = 1
SHOWN_MAX: Final = 12  # failing devices that are named


@click.group()
def sim() -> None:
    """Rehearse a rollout on a simulated fleet that runs the agent's own code."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a run was called with."""

    path: Path
    world: str
    seed: int
    url: str | None
    token: str | None
    data: Path
    own_cloud: bool
    broker: str
    renew: bool
    as_json: bool

    @property
    def command(self) -> str:
        """The command that repeats the run; a token is never printed."""
        words = ["lastgood", "sim", "run", str(self.path), "--seed", str(self.seed)]
        if self.world == "virtual":
            words += ["--world", "virtual"]
        elif self.own_cloud:
            words += ["--own-cloud", "--broker", self.broker]
        elif self.url is not None:
            words += ["--url", self.url, "--token", "TOKEN", "--renew"]
        else:
            words += ["--data", str(self.data), "--renew"]
        return shlex.join(words)


@sim.command()
@click.argument("scenario", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--world", type=click.Choice(["live", "virtual"]), default="live", show_default=True,
              help="live: real MQTT and downloads. virtual: the same bytes for the same seed.")  # fmt: skip
@click.option("--seed", type=int, default=None, help="Decides all that is drawn. [the scenario's]")
@click.option("--url", default=None, help="Address of a running cloud.")
@click.option("--token", default=None, envvar="LASTGOOD_TOKEN", help="Its API token (an administrator's).")
@click.option("--data", type=click.Path(path_type=Path), default="lastgood-data", envvar="LASTGOOD_DATA",
              show_default=True, help="Data folder of a running cloud, instead of --url and --token.")  # fmt: skip
@click.option("--own-cloud", is_flag=True, help="Start a cloud for this run, in a temporary folder.")
@click.option(
    "--broker",
    default="auto",
    show_default=True,
    help="Of the own cloud: auto, mosquitto, embedded, mqtt://…",
)
@click.option("--renew", is_flag=True, help="Give devices that the cloud knows already new tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def run(
    scenario: Path,
    world: str,
    seed: int | None,
    url: str | None,
    token: str | None,
    data: Path,
    own_cloud: bool,
    broker: str,
    renew: bool,
    as_json: bool,
) -> int:
    """Play SCENARIO, and exit with 0 when everything that it expects holds."""
    read = _read(scenario)
    if (
        url is None
        and click.get_current_context().get_parameter_source("token") is ParameterSource.ENVIRONMENT
    ):
        token = None  # it is for the commands that ask a cloud by its address
    if (url is None) != (token is None):
        raise click.UsageError("--url and --token go together.")
    if read.storm is not None and world == "live":
        raise click.UsageError(
            f"{scenario} has a [storm], which is played in virtual time: add --world virtual."
        )
    options = Options(
        scenario,
        world,
        read.seed if seed is None else seed,
        url,
        token,
        data,
        own_cloud,
        broker,
        renew,
        as_json,
    )
    console = Console(stderr=as_json)
    _print_options(console, read, options)
    try:
        ending = _virtual(read, options, console) if world == "virtual" else _live(read, options, console)
    except LastgoodError:
        raise
    except Exception:
        _say(console, f"Something broke. Repeat it with:  {options.command}")
        raise
    return _conclude(console, read, options, ending)


@sim.command()
@click.argument("scenario", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--seed", type=int, default=None, help="Decides who fails. [the scenario's]")
def check(scenario: Path, seed: int | None) -> None:
    """Read SCENARIO, and say what it would do and who would fail; nothing is started."""
    read = _read(scenario)
    chosen = read.seed if seed is None else seed
    fleet = members(read, chosen)
    click.echo(f"{read.name}: {read.about}" if read.about else read.name)
    click.echo(
        f"seed {chosen}, {len(fleet)} devices, {len(read.step)} steps, {len(read.expect)} expectations"
    )
    for part in read.fleet:
        properties = ", ".join(f"{key}={value}" for key, value in part.properties.items())
        click.echo(
            f"  {part.label}: {part.count} devices in group {part.group} ({properties}), arrives {part.arrives}"
        )
    for line in _failing(read, fleet, chosen):
        click.echo(f"  {line}")


def _live(scenario: Scenario, options: Options, console: Console) -> Ending:
    fleet_members = members(scenario, options.seed)
    model = model_of(scenario, failures(scenario.failure, fleet_members, options.seed))
    fleet = LiveFleet(FleetOptions(options.seed, model, settings_of(scenario)))
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(_cloud(scenario, options, console))
        stack.enter_context(fleet)
        display = stack.enter_context(Display(console))
        stage = LiveStage(fleet, api, fleet_members, options.seed, renew=options.renew)
        play = Play(scenario, stage, time.monotonic(), display.say)
        display.say(f"{stage.arrive()} devices arrive")
        first = began = time.monotonic()
        try:
            while not play.advance(began):
                display.update(fleet.sights(), play.waits_for, fleet.figures().said)
                looked_s = time.monotonic() - began
                time.sleep(min(LOOK_LAST_S, max(LOOK_S, looked_s / LOOKS_MOST)))
                began = time.monotonic()
            sights, figures = fleet.sights(), fleet.figures()
        except InvariantBroken as broken:
            return _broken(time.monotonic() - first, broken)
        left = fleet.stop()
    _summary(console, sights)
    _say(
        console,
        f"{figures.connects} connections, {figures.messages_out} messages sent, {figures.messages_in} received, "
        f"{figures.fetches} real downloads of {figures.bytes_fetched:,} bytes",
    )
    if figures.refusals:
        _say(console, f"{figures.refusals} connections were not made at first: {figures.said}.")
    if left:
        _say(console, f"{left} devices could not say goodbye in time.")
    return _ended(play)


def _virtual(scenario: Scenario, options: Options, console: Console) -> Ending:
    logging.getLogger("cloud_stub").setLevel(logging.ERROR)  # what a storm makes the cloud refuse is no news
    began = time.monotonic()
    world = VirtualWorld(scenario, options.seed, lambda sentence: _say(console, sentence))
    try:
        done = world.run()
    except InvariantBroken as broken:
        return _broken(world.clock.now_ms() / 1_000, broken)
    _summary(console, world.look(cloud=False, said=False).devices)
    _say(
        console,
        f"{done.virtual_ms / 1_000:,.0f} s of virtual time in {time.monotonic() - began:.1f} s: "
        f"{done.messages} messages ({done.lost} lost), {done.power_losses} power losses, "
        f"{done.cloud_starts} start{'' if done.cloud_starts == 1 else 's'} of the cloud, "
        f"{done.checks} checks of invariants, trace {done.trace}",
    )
    return done.ending


@contextlib.contextmanager
def _cloud(scenario: Scenario, options: Options, console: Console) -> Iterator[CloudApi]:
    """Yield the API of the cloud that was asked for, and end it if it is our own."""
    if not options.own_cloud:
        url, token = client_file(options.data) if options.url is None else (options.url, options.token or "")
        with contextlib.closing(CloudApi(url, token)) as api:
            yield api
        return
    end_like_ctrl_c()
    with tempfile.TemporaryDirectory(prefix="lastgood-sim-") as folder:
        own = OwnCloud(Path(folder) / "cloud", options.broker, scenario.device.heartbeat_s)
        try:
            with contextlib.closing(own.start()) as api:
                _say(console, f"own cloud at {api.url}")
                yield api
        finally:
            own.stop()


def _conclude(console: Console, scenario: Scenario, options: Options, ending: Ending) -> int:
    for judgement in ending.judgements:
        _say(console, f"{'held    ' if judgement.held else 'NOT HELD'}  {judgement.sentence}")
    if ending.broke:
        _say(console, f"The run broke off: {ending.broke}.")
    if options.as_json:
        result = {
            "scenario": scenario.name,
            "seed": options.seed,
            "world": options.world,
            "held": ending.held,
        }
        click.echo(json.dumps(result | asdict(ending) | {"repeat": options.command}, indent=1))
    if ending.held:
        _say(console, f"{scenario.name}: everything held.")
        return HELD
    _say(console, f"Repeat it with:  {options.command}")
    return NOT_HELD


def _print_options(console: Console, scenario: Scenario, options: Options) -> None:
    where = ""
    if options.world == "live":
        where = (
            f" · own cloud, broker {options.broker}"
            if options.own_cloud
            else f" · cloud {options.url or options.data}"
        )
    count = sum(part.count for part in scenario.fleet)
    _say(
        console,
        f"seed {options.seed} · scenario {scenario.name} ({options.path}) · world {options.world} · "
        f"{count} devices{where}",
    )
    if options.world == "live" and scenario.network.latency_ms:
        _say(console, "This run's network is real: latency_ms of [network] is for virtual time.")
    for line in _failing(scenario, members(scenario, options.seed), options.seed):
        _say(console, line)


def _failing(scenario: Scenario, fleet: Sequence[Member], seed: int) -> Iterator[str]:
    """Yield a line for each update that fails somewhere, with the devices by name."""
    found = failures(scenario.failure, fleet, seed)
    groups = {member.id: member.group for member in fleet}
    for update in sorted({update for _, update in found}):
        hit = [device for device, which in found if which == update]
        hows = Counter(failure.how for (_, which), failure in found.items() if which == update)
        named = ", ".join(hit[:SHOWN_MAX]) + (", …" if len(hit) > SHOWN_MAX else "")
        places = ", ".join(
            f"{count} in {group}" for group, count in Counter(groups[device] for device in hit).items()
        )
        yield f"{update} fails on {places} ({', '.join(sorted(hows))}): {named}"


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _summary(console: Console, sights: Mapping[str, DeviceSight]) -> None:
    console.print(table(sights))


def _broken(after_s: float, broken: InvariantBroken) -> Ending:
    return Ending((), f"after {after_s:.3f} s an invariant broke: {broken}")


def _ended(play: Play) -> Ending:
    if play.ending is None:
        raise LastgoodError("The run was stopped before its end.")
    return play.ending


def _read(path: Path) -> Scenario:
    try:
        return read_scenario(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}.") from error
    except OperatorError as error:
        raise click.UsageError(str(error)) from error
