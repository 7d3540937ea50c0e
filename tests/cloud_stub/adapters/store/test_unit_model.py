"""The transaction against a model: a dict that is copied at each mark and put back when a block raises.

It finds what single cases do not: an overlay, its savepoints and its flushes in any order.
"""

from copy import deepcopy
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_stub.adapters.store import open_store, verify_audit
from cloud_stub.adapters.store.unit import SqlUnit
from cloud_stub.core.rows import AssignmentState, DeploymentRow, DeviceRow
from protocol.lifecycle import DeploymentState
from tests.cloud_stub.adapters.store.rows import assignment, deployment, device

_NAMES = ("a", "b", "c")
_GROUPS = ("red", "blue")
_STATES = (AssignmentState.PENDING, AssignmentState.WORKING, AssignmentState.FAILED)

_NAME = st.sampled_from(_NAMES)
_PUT = st.tuples(st.just("put"), _NAME, st.sampled_from(_GROUPS), st.integers(0, 3))
_ASSIGN = st.tuples(st.just("assign"), _NAME, st.sampled_from(_STATES))
_START = st.tuples(st.just("start"), st.sampled_from(_GROUPS))
_OTHER = st.sampled_from(
    [
        ("list",),
        ("classes",),
        ("members",),
        ("raise", "red"),
        ("raise", "blue"),
        ("audit",),
        ("note",),
        ("stale",),
        ("told",),
        ("active",),
    ]
)
_STEP = _PUT | _ASSIGN | _START | _OTHER
_PART = st.tuples(st.just("part"), st.booleans(), st.lists(_STEP, max_size=5))
_NESTED = st.tuples(st.just("part"), st.booleans(), st.lists(_STEP | _PART, max_size=5))
_TRANSACTION = st.tuples(st.booleans(), st.lists(_STEP | _PART | _NESTED, max_size=10))


class Undone(Exception):
    """A block that raises."""


class World:
    """What the rows should be."""

    def __init__(self) -> None:
        self.devices: dict[str, DeviceRow] = {}
        self.told: dict[str, AssignmentState] = {}
        self.deployments: dict[str, DeploymentRow] = {"d0": deployment("d0", DeploymentState.CANCELED)}
        self.said = 0
        self.note: str | None = None


@settings(max_examples=80)
@given(st.lists(_TRANSACTION, max_size=4))
def test_the_transaction_does_what_a_dict_does(
    transactions: list[tuple[bool, list[tuple[object, ...]]]],
) -> None:
    """After every step, reads by key and by query equal the model's; after every end, a fresh look does."""
    store = open_store("sqlite://")
    with store.transaction() as unit:
        unit.put_deployment(deployment("d0", DeploymentState.CANCELED))
    world = World()
    for keeps, steps in transactions:
        before = deepcopy(world)
        try:
            with store.transaction() as unit:
                for step in steps:
                    _do(unit, world, step)
                if not keeps:
                    raise Undone
        except Undone:
            world = before
        with store.read() as reader:
            assert {row.id: row for row in reader.list_devices()} == world.devices
            assert {row.id: row for row in reader.list_deployments()} == world.deployments
            assert {row.device: row.state for row in reader.list_assignments(deployment="d0")} == world.told
            assert (reader.note("n"), len(reader.audit())) == (world.note, world.said)
            assert verify_audit(reader) is None
    store.close()


def _do(unit: SqlUnit, world: World, step: tuple[object, ...]) -> None:
    match step:
        case ("put", str(name), str(group), int(floor)):
            row = replace(world.devices.get(name) or device(name), group=group, floor=floor)
            world.devices[name] = row
            unit.put_device(row)
        case ("assign", str(name), AssignmentState() as state):
            if name in world.devices:
                world.told[name] = state
                unit.put_assignment(assignment("d0", name, state))
        case ("start", str(group)):
            _start(unit, world, group)
        case ("raise", str(group)):
            members = [row for row in world.devices.values() if row.group == group]
            for row in members:
                world.devices[row.id] = replace(row, epoch=max(row.epoch + 1, 5), order_stale=True)
            assert unit.raise_epochs(group, 5) == len(members)
        case ("audit",):
            world.said += 1
            unit.add_audit(1, "ann", "said", "x", {})
        case ("note",):
            world.note = str(int(world.note or 0) + 1)
            unit.put_note("n", str(int(unit.note("n") or 0) + 1))
        case ("part", bool(keeps), list(steps)):
            before = {name: deepcopy(value) for name, value in vars(world).items()}
            try:
                with unit.savepoint():
                    for inner in steps:
                        _do(unit, world, inner)
                    if not keeps:
                        raise Undone
            except Undone:
                vars(world).update(before)
        case _:
            _query(unit, world, str(step[0]))
    assert unit.devices(_NAMES) == world.devices
    found = unit.assignments(("d0", name) for name in _NAMES)
    assert {name: row.state for (_, name), row in found.items()} == world.told


def _start(unit: SqlUnit, world: World, group: str) -> None:
    old = unit.active(group)
    assert old == _active(world, group)
    if old is not None:
        world.deployments[old.id] = replace(old, state=DeploymentState.SUPERSEDED)
        unit.put_deployment(world.deployments[old.id])
    new = deployment(unit.next_deployment_id(), group=group)
    world.deployments[new.id] = new
    unit.put_deployment(new)


def _active(world: World, group: str) -> DeploymentRow | None:
    active = [
        row
        for row in world.deployments.values()
        if row.group == group and row.state is DeploymentState.ACTIVE
    ]
    return active[0] if active else None


def _query(unit: SqlUnit, world: World, what: str) -> None:
    if what == "list":
        assert {row.id: row for row in unit.list_devices()} == world.devices
    elif what == "stale":
        assert {row.id for row in unit.stale(10)} == {
            row.id for row in world.devices.values() if row.order_stale
        }
    elif what == "told":
        failed = [name for name, state in sorted(world.told.items()) if state is AssignmentState.FAILED]
        rows = unit.list_assignments(deployment="d0", states=[AssignmentState.FAILED])
        assert [row.device for row in rows] == failed
    elif what == "active":
        assert [unit.active(group) for group in _GROUPS] == [_active(world, group) for group in _GROUPS]
    elif what == "members":
        for group in _GROUPS:
            floors = [row.floor for row in world.devices.values() if row.group == group]
            held = [(count.members, count.floor_max >= max(floors)) for count in unit.class_members(group)]
            assert held == ([(len(floors), True)] if floors else [])
    else:
        for group in _GROUPS:
            floors = [row.floor for row in world.devices.values() if row.group == group]
            counted = [(count.members, count.floor_max) for count in unit.classes(group)]
            assert counted == ([(len(floors), max(floors))] if floors else [])
