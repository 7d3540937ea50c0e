"""The story of the demo, act by act. Each act types what a user would type, waits for its fact, and tells it.

It asserts at the end what it told. A fact is waited for with a deadline, never with a pause.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Final

import click
import httpx

from cloud_stub.cli.client import get_here
from simulator.core.fleet import Member
from simulator.demo.backstage import Agent, Backstage, DemoFailed
from simulator.demo.cast import (
    BAD,
    FAILED_COUNT,
    FAILED_PERCENT,
    GOOD,
    NORTH,
    REAL_AGENTS,
    SOUTH,
    WEST,
    Cast,
    counted,
    properties,
)
from simulator.live.fleet import LiveFleet

ROLLOUT_S: Final = 300.0  # deadline of every rollout: a slow machine is no failure, a stuck fleet is
HEALTH_S: Final = 60.0  # for an answer of a real agent's application
BEACONS: Final = "configs/demo"  # `Backstage` makes it reachable from the folder in which commands run
JOIN: Final = "--join "


@dataclass(slots=True)
class Story:
    """One telling."""

    backstage: Backstage
    cast: Cast
    began_s: float
    fleet: LiveFleet = field(init=False)
    agents: list[Agent] = field(default_factory=list)
    bad: str = ""  # the deployment of version 2

    def tell(self) -> None:
        """Tell the whole story.

        Raises:
            DemoFailed: a fact did not come true.
        """
        self.open_the_house()
        self.gather_the_fleet()
        self.roll_out_version_1()
        self.let_a_device_join_late()
        self.move_a_device()
        self.look_at_the_slots("before")
        self.deploy_version_2()
        self.watch_it_fail()
        self.watch_the_group_go_back()
        self.look_at_the_slots("after")
        self.draw_up_the_balance()

    def open_the_house(self) -> None:
        """Start the cloud; the page's address comes first."""
        told = self.backstage.start_cloud()
        click.echo(click.style(f"Follow it in a browser: {told['pages']}", bold=True))
        self.backstage.show(
            "cloud", "up", "--data", str(self.backstage.data), "--broker", self.backstage.broker
        )
        self.say(
            f"the same story again: lastgood demo --seed {self.cast.seed} --broker {self.backstage.broker}"
        )
        self.say(f"a cloud is up; its broker is {told['broker']}")
        self.say(f"everything it writes lies in {self.backstage.data}")

    def gather_the_fleet(self) -> None:
        """Add devices, virtual and real, and wait until they are there."""
        self.act("A fleet gathers")
        self.fleet = self.backstage.enter(LiveFleet(self.cast.options()))
        self.let_in(self.cast.fleet)
        for number, device in enumerate(REAL_AGENTS):
            self.add_agent(device, number)
        total = len(self.cast.fleet) + len(self.agents)
        self.backstage.until("every device is online", lambda: self.online() >= total, ROLLOUT_S)
        classes = sorted({member.properties["model"] for member in self.cast.fleet})
        self.say(
            f"{len(self.cast.fleet)} virtual devices, each with its own MQTT connection, and {len(self.agents)} real "
            f"agent processes are online: groups {NORTH}, {SOUTH}, {WEST}; classes {', '.join(classes)}"
        )

    def roll_out_version_1(self) -> None:
        """Pack, import and deploy version 1 to all groups."""
        self.act("Version 1 rolls out to all groups")
        self.pack_and_import(GOOD)
        for group in (NORTH, SOUTH, WEST):
            self.backstage.command("deploy", "create", group, GOOD, "--yes")
        for group in (NORTH, SOUTH, WEST):
            self.wait_for_runs(group, GOOD)
            self.say(f"every device of {group} committed {GOOD}")
        self.say(f"the real agents' applications answer over HTTP: {self.healths()}")

    def let_a_device_join_late(self) -> None:
        """A latecomer gets what its group has: deployments are dynamic."""
        self.act("A device joins late")
        self.let_in((self.cast.late,))
        self.wait_for_device(self.cast.late.id, GOOD)
        self.say(f"{self.cast.late.id} came long after the rollout, and runs {GOOD}: deployments are dynamic")

    def move_a_device(self) -> None:
        """A device moved to another group gets that group's update."""
        self.act("A device moves to another group")
        stray = self.cast.stray.id
        self.let_in((self.cast.stray,))
        self.backstage.until("the stray is there", lambda: self.device(stray)["online"], ROLLOUT_S)
        self.say(
            f"{stray} is in group {self.device(stray)['group']}, which has no deployment: it runs nothing"
        )
        self.backstage.command("device", "move", stray, SOUTH)
        self.wait_for_device(stray, GOOD)
        self.say(f"{stray} is in {SOUTH} now, and runs {GOOD}")

    def look_at_the_slots(self, when: str) -> None:
        """Show the two slots of one real device."""
        self.act(f"The slots of a real device, {when}")
        self.show("agent", "slots", "--state", str(self.agents[0].folder / "state"))

    def deploy_version_2(self) -> None:
        """Deploy the bad version to one group, under a policy, after its plan was shown."""
        self.act(f"Version 2 goes to {NORTH}, under a policy")
        names = self.cast.failing_names
        self.say(f"seed {self.cast.seed} makes it fail on {len(names)} virtual devices: {counted(names)}")
        self.say("on the real agents it really crashes: it reads a setting that nobody put in")
        self.pack_and_import(BAD)
        draft = (
            NORTH, BAD,
            "--failed-count", str(FAILED_COUNT),
            "--failed-percent", str(FAILED_PERCENT),
            "--rollback-to", GOOD,
        )  # fmt: skip
        self.show("deploy", "plan", *draft)
        self.backstage.command("deploy", "create", *draft, "--yes")
        self.bad = self.newest(NORTH)["id"]

    def watch_it_fail(self) -> None:
        """Wait for a success on version 2, for every real agent's revert, and for the trip."""
        self.act("It fails, and each device goes back by itself")
        self.backstage.until(
            "a device committed version 2", lambda: self.bad_one()["tally"]["succeeded"], ROLLOUT_S
        )
        self.say(f"some devices are well with it: {self.bad_one()['tally']['succeeded']} committed {BAD}")
        for agent in self.agents:
            row = self.wait_for_failure(agent.id)
            self.wait_for_the_way_back(agent)
            self.say(
                f"{agent.id}: {row['state']} ({row['reason']}), the fault of the {row['party']}: {row['detail']}"
            )
        self.say("each went back by itself: its own disk says that it runs its last known good slot")
        self.backstage.until(
            "the policy tripped", lambda: self.bad_one()["state"] == "rolled_back", ROLLOUT_S
        )
        self.check_who_failed()
        self.show("deploy", "show", self.bad)
        trip = self.bad_one()["trip"]
        self.say(
            click.style(f"the policy tripped: {trip['sentence'].removeprefix('Went back: ')}", bold=True)
        )

    def check_who_failed(self) -> None:
        """Hold who failed by the update's fault to whom the seed had named."""
        failed = {row["device"] for row in self.rows("failed") if row["party"] == "update"}
        named = {*self.cast.failing_names, *REAL_AGENTS}
        if failed != named:
            raise DemoFailed(f"The seed named {sorted(named)}, and {sorted(failed)} failed.")

    def watch_the_group_go_back(self) -> None:
        """The whole group ends on version 1, those that had succeeded on version 2 too."""
        self.act("The whole group goes back by policy")
        rollback = self.bad_one()["rollback"]
        self.show("deploy", "list")
        self.say(
            f"without a hand, deployment {rollback} of {GOOD} started, caused by {self.bad}; {BAD} is withdrawn"
        )
        self.wait_for_runs(NORTH, GOOD)
        went_back = [row["device"] for row in self.rows("succeeded") if not row["already_there"]]
        for device in went_back:
            self.wait_for_device(device, GOOD)
        self.say(f"also the {len(went_back)} that had committed {BAD} are back: {counted(went_back)}")
        self.say(f"the real agents' applications answer over HTTP: {self.healths()}")

    def draw_up_the_balance(self) -> None:
        """Show what every group runs, and assert it."""
        self.act("The balance")
        self.show("device", "why", self.agents[0].id)
        self.show("group", "list")
        groups = {group["group"]: group for group in self.backstage.api.ask("GET", "/groups")}
        for name in (NORTH, SOUTH, WEST):
            runs = {row["update"]: row["count"] for row in groups[name]["runs"]}
            if runs != {GOOD: groups[name]["members"]}:
                raise DemoFailed(f"Group {name} should run {GOOD} alone, and runs {runs}.")
        trip = self.bad_one()["trip"]
        reached = trip["failed"] >= FAILED_COUNT and 100 * trip["failed"] >= FAILED_PERCENT * trip["base"]
        if not reached:
            raise DemoFailed(
                f"The policy tripped at {trip['failed']} of {trip['base']}, short of its numbers."
            )
        if set(self.healths().split(", ")) != {"1.0.0"}:
            raise DemoFailed(f"A real agent's application is not version 1: {self.healths()}.")
        astray = [name for name, sight in self.fleet.sights().items() if not sight.on_last_known_good]
        astray += [agent.id for agent in self.agents if not self.has_gone_back(agent)]
        if astray:
            raise DemoFailed(f"Not on their last known good slot: {counted(astray)}.")
        self.say(
            "asserted: every group runs version 1 alone, and every device is on its last known good slot"
        )

    # --- what the acts are made of ---------------------------------------------------------------------------

    def say(self, sentence: str) -> None:
        """Tell one line, with the seconds since the beginning."""
        click.echo(f"{time.monotonic() - self.began_s:6.1f} s  {sentence}")

    def show(self, *words: str) -> None:
        """Type a command, and print what it says; the next act brings its own empty line."""
        click.echo(self.backstage.command(*words).rstrip("\n"))

    def act(self, title: str) -> None:
        """Begin an act."""
        click.echo("\n" + click.style(title, bold=True, fg="cyan"))

    def let_in(self, members: tuple[Member, ...]) -> None:
        """Register virtual devices, and let them connect."""
        ids = [member.id for member in members]
        if len(ids) == 1:
            join = self.backstage.command("device", "add", ids[0]).partition(JOIN)[2].split()[0]
            self.fleet.add([(members[0], join)])
            return
        joins = self.backstage.api.add_devices(ids)
        self.fleet.add([(member, joins[member.id]) for member in members])

    def add_agent(self, device: str, number: int) -> None:
        """Add one real device as a user does, and run its agent."""
        join = self.backstage.command("device", "add", device).partition(JOIN)[2].split()[0]
        self.agents.append(self.backstage.start_agent(device, join, properties(number), NORTH))

    def pack_and_import(self, update: str) -> None:
        """Pack a folder of the demo into an update, and import it."""
        version = update.rpartition(":")[2]
        out = f"beacon-{version}"
        compatibility = [word for model in ("pi4", "pi5") for word in ("--compat", f"model={model}")]
        self.backstage.command(
            "update", "pack", f"{BEACONS}/beacon{version[0]}", "--id", update, *compatibility, "--out", out
        )
        self.backstage.command("update", "import", f"{out}/demo.beacon.{version}.importmanifest.json")

    def online(self) -> int:
        """Return how many devices the cloud has online."""
        return sum(group["online"] for group in self.backstage.api.ask("GET", "/groups"))

    def device(self, device: str) -> dict[str, Any]:
        """Return a device as the cloud has it."""
        found: dict[str, Any] = self.backstage.api.ask("GET", f"/devices/{device}")
        return found

    def newest(self, group: str) -> dict[str, Any]:
        """Return the newest deployment of a group."""
        found: dict[str, Any] = self.backstage.api.ask("GET", f"/deployments?group={group}")[0]
        return found

    def bad_one(self) -> dict[str, Any]:
        """Return the deployment of version 2."""
        found: dict[str, Any] = self.backstage.api.ask("GET", f"/deployments/{self.bad}")
        return found

    def rows(self, state: str) -> list[dict[str, Any]]:
        """Return the assignments of the deployment of version 2 in a state."""
        found: list[dict[str, Any]] = self.backstage.api.ask(
            "GET", f"/deployments/{self.bad}/devices?state={state}"
        )
        return found

    def wait_for_failure(self, device: str) -> dict[str, Any]:
        """Wait until a device has failed on version 2, and return how."""

        def verdict() -> dict[str, Any] | None:
            return next((row for row in self.rows("failed") if row["device"] == device), None)

        return self.backstage.until(f"{device} failed on {BAD}", verdict, ROLLOUT_S)

    def wait_for_the_way_back(self, agent: Agent) -> None:
        """Wait until a real device runs its last known good slot, as its own disk says."""
        self.backstage.until(f"{agent.id} went back", lambda: self.has_gone_back(agent), ROLLOUT_S)

    def has_gone_back(self, agent: Agent) -> bool:
        """Return whether a device that tried version 2 runs version 1 again, from its last known good slot."""
        slots = self.backstage.slots(agent).values()
        runs = [
            slot["update"]
            for slot in slots
            if slot["booted"] and slot["last_known_good"] and slot["holds"] == "good"
        ]
        bad = [slot["update"] for slot in slots if slot["holds"] == "bad"]
        return (runs, bad) == ([GOOD], [BAD])

    def wait_for_runs(self, group: str, update: str) -> None:
        """Wait until every member of a group runs an update, and works on nothing."""

        def all_run() -> bool:
            found = self.backstage.api.ask("GET", f"/groups/{group}")
            runs = [row["update"] for row in found["runs"]]
            return runs == [update] and self.tally_is_settled(found["active"])

        self.backstage.until(f"{group} runs {update}", all_run, ROLLOUT_S)

    def tally_is_settled(self, deployment: str) -> bool:
        """Return whether every member of a deployment has a verdict."""
        tally = self.backstage.api.ask("GET", f"/deployments/{deployment}")["tally"]
        return not tally["pending"] and not tally["working"]

    def wait_for_device(self, device: str, update: str) -> None:
        """Wait until a device runs an update."""
        self.backstage.until(
            f"{device} runs {update}", lambda: self.device(device)["runs"] == update, ROLLOUT_S
        )

    def healths(self) -> str:
        """Ask the real agents' applications for their versions."""
        return ", ".join(_health(agent.port) for agent in self.agents)


def _health(port: int) -> str:
    try:
        return get_here(f"http://127.0.0.1:{port}/health", HEALTH_S).text.strip()
    except httpx.HTTPError as error:
        raise DemoFailed(f"A real agent's application does not answer: {error}.") from error
