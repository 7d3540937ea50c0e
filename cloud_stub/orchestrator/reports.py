"""What devices say, within a transaction: hello, state, progress, gone.

It believes what a device runs from its newest authenticated report, and nothing a device says about another (the
topic names the device, and the broker holds it to that). Source: RULES.md R2, R6 to R9, R16 to R19.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from cloud_stub.core import verdicts
from cloud_stub.core.places import class_key_of, group_of, group_tag_of, is_at, may_change_place
from cloud_stub.core.rows import AssignmentRow, AssignmentState, DeviceRow
from cloud_stub.orchestrator import deployments, outbox
from cloud_stub.orchestrator.turn import Turn
from cloud_stub.orchestrator.values import HEARTBEATS_MISSED, TURN_ROWS_MAX, Delivered, Input, Sent
from cloud_stub.ports import Unit
from protocol import messages
from protocol.errors import MessageRefused, PeerError
from protocol.lifecycle import PAST_NO_RETURN, WorkflowState
from protocol.messages import Gone, Hello, OutcomeReport, Progress, State
from protocol.outcomes import Reason, Result
from protocol.topics import Kind

CLONE_WINDOW_MS: Final = 3_600_000  # two instances that alternate within an hour are two devices (R8)
SEEN_EVERY_MS: Final = (
    10_000  # how exactly "last seen" is kept: a write for each heartbeat would only wear the disk
)

Read = messages.Message | Exception | None
"""What an input's bytes say, why they say nothing, or None for an input without bytes."""


def hello(turn: Turn, box: "outbox.Outbox", device: DeviceRow, said: Hello) -> None:
    """A device is there: take its instance and epoch, answer, and repair what it lacks (R6)."""
    now = _instance(turn, _present(turn, device, said.connection), said.instance, may_supersede=True)
    now = _epoch(turn, box, now, said)
    if said.epoch is None and now.order_action is None:
        now = turn.raised(
            now
        )  # a first order, if only to hold: later ones need no nonce and reach it at once (R3)
    turn.put_device(device, now)
    now = box.decided(turn, now)
    lacks = now.epoch > 0 and now.order_action is not None and (said.epoch or 0) < now.epoch
    if lacks or (said.wants_addresses and said.epoch == now.epoch):
        box.send_order(turn, now, nonce=said.nonce if said.epoch is None else None)
    differs = (said.instance, said.sequence, said.digest) != (now.instance, now.sequence, now.digest)
    if said.nonce is not None or differs or (said.epoch or 0) != now.epoch:
        box.ack(turn, now, nonce=said.nonce)


def state(turn: Turn, box: "outbox.Outbox", device: DeviceRow, said: State) -> None:
    """A device reports itself whole: rows follow it, verdicts are settled, and it is acknowledged."""
    now = _instance(turn, device, said.instance, may_supersede=device.instance is None)
    if now.instance != said.instance:
        return  # an older instance, or one whose hello is still under way: its state comes again (R8)
    if said.sequence <= now.sequence and now.digest is not None:
        turn.put_device(device, now)
        box.ack(turn, now)
        return
    now = _reported(turn, now, said)
    turn.put_device(device, now)
    if not now.cloned:  # which of the two speaks is unknown: counted nowhere (R8)
        touched = _assignments(turn, now, said)
        _answered(turn, now, said, touched)
        _worked(turn, now, said, touched)
        _settled(turn, now, said, touched)
        _ran(turn, now, said, touched)
    _move(turn, turn.unit.device(now.id) or now, said)
    box.ack(turn, box.decided(turn, turn.unit.device(now.id) or now))


def progress(turn: Turn, device: DeviceRow, said: Progress) -> None:
    """Phase and bytes of an attempt; a device that moves is heard.

    It bears no sequence number, so one that comes late must not take a trial back before the switch (R10).
    """
    row = turn.unit.assignment(said.deployment, device.id)
    turn.put_device(device, _heard(turn, device))
    if row is None or (row.phase in PAST_NO_RETURN and said.phase not in PAST_NO_RETURN):
        return
    if row.attempt == said.attempt and not device.cloned:
        moved = verdicts.began(
            row, said.phase, said.bytes_done, said.bytes_total, turn.now_ms, turn.observed_ms
        )
        turn.save(row, moved)


def refused(turn: Turn, box: "outbox.Outbox", device: DeviceRow, error: MessageRefused) -> None:
    """A device's state cannot be read: say so, and it sends the minimal one (R6)."""
    box.ack(turn, device, refused=error.reason)


def offline(turn: Turn, device: DeviceRow, connection: str) -> None:
    """The connection with this nonce has been gone for the debounce; another one's will is ignored (R9)."""
    if device.connection == connection and device.online:
        turn.put_device(device, replace(device, online=False))


def offline_unheard(turn: Turn) -> None:
    """Take devices for offline that missed several heartbeats: a will may be lost, or told while the cloud was away."""
    patience_ms = HEARTBEATS_MISSED * turn.settings.heartbeat_ms + SEEN_EVERY_MS
    for device in turn.unit.unheard(turn.now_ms - patience_ms, TURN_ROWS_MAX):
        turn.put_device(device, replace(device, online=False))


def is_current(device: DeviceRow, said: Gone) -> bool:
    """Return whether a last will is of the connection that the device has now (R9)."""
    return device.connection == said.connection


def left_group(turn: Turn, device: DeviceRow) -> None:
    """Take a device out of the active deployment of the group it was in (rule 3)."""
    active = turn.unit.active(device.group)
    row = turn.unit.assignment(active.id, device.id) if active else None
    if row is not None:
        turn.save(row, verdicts.left(row, turn.now_ms))
    if active is not None:
        turn.judge(turn.deployment(active.id))  # the base shrank, row or no row (R14)


def _present(turn: Turn, device: DeviceRow, connection: str) -> DeviceRow:
    device = _heard(turn, device)
    if device.online and device.connection == connection:
        return device
    return replace(device, online=True, connection=connection, last_seen_ms=turn.now_ms)


def _heard(turn: Turn, device: DeviceRow) -> DeviceRow:
    """Return the device as heard now; on the observed clock too, since the wall clock may have been set back (R12)."""
    every_ms = min(SEEN_EVERY_MS, turn.settings.heartbeat_ms)
    order = turn.unit.deployment(device.order_deployment) if device.order_deployment is not None else None
    if order is not None:
        every_ms = min(
            every_ms, order.device_timeout_ms // 4
        )  # who speaks must not be taken for silent (R12)
    seen_ms = turn.now_ms - device.last_seen_ms if device.last_seen_ms is not None else every_ms
    if 0 <= seen_ms < every_ms and turn.observed_ms - device.heard_ms < every_ms:
        return device
    return replace(device, last_seen_ms=turn.now_ms, heard_ms=turn.observed_ms)


def _instance(turn: Turn, device: DeviceRow, instance: str, *, may_supersede: bool) -> DeviceRow:
    """Return the device under this instance; two that alternate within the window are clones (R8).

    What the instance before ran is not said of the new one until it reports itself.
    """
    if device.instance == instance or not may_supersede:
        return device
    alternates = (
        instance == device.instance_before and turn.now_ms - device.instance_since_ms < CLONE_WINDOW_MS
    )
    superseded = replace(
        device,
        instance=instance,
        instance_before=device.instance,
        instance_since_ms=turn.now_ms,
        sequence=0,
        digest=None,
        reported_epoch=None,
        running_update=None,
        running_sha256=None,
        running_counter=0,
    )
    if alternates and not device.cloned:
        turn.audit(
            "cloud", "alert", device.id, sentence="two devices use this identity in turn (cloned); it holds"
        )
        return turn.raised(replace(superseded, cloned=True))
    if device.order_action is None:
        return superseded
    # it has nothing of what the old one had: its order is decided anew, and what failed there not ordered again
    return turn.raised(superseded)


def _epoch(turn: Turn, box: "outbox.Outbox", device: DeviceRow, said: Hello) -> DeviceRow:
    """Return the device with the epoch it reports; one ahead of its row is believed with proof alone (R2)."""
    if said.epoch is None or said.epoch <= device.epoch:
        return device if said.epoch == device.reported_epoch else replace(device, reported_epoch=said.epoch)
    if said.proof is None or not _is_proved(box, device.id, said.epoch, said.proof):
        return device
    if turn.unit.note("restored") is None:
        turn.unit.put_note("restored", str(turn.now_ms))
        turn.audit(
            "cloud",
            "alert",
            device.id,
            sentence="the cloud's data is older than its devices: offers stop (R2)",
        )
    return turn.raised(replace(device, reported_epoch=said.epoch))


def _is_proved(box: "outbox.Outbox", device: str, epoch: int, proof: str) -> bool:
    try:
        order = messages.read(messages.Assignment, box.keys.open_envelope(proof.encode()))
    except PeerError:
        return False
    return order.device == device and order.epoch == epoch


def _reported(turn: Turn, device: DeviceRow, said: State) -> DeviceRow:
    """Return the device as it reports itself, apart from its place; what a minimal state leaves out stays (R6)."""
    running = said.running
    known_epoch = (
        said.epoch if said.epoch is not None and said.epoch <= device.epoch else device.reported_epoch
    )
    return replace(
        device,
        sequence=said.sequence,
        digest=said.digest,
        reported_epoch=known_epoch,
        epoch_in_work=device.epoch_in_work if said.minimal else said.epoch_in_work,
        running_update=running.update if running else None,
        running_sha256=running.sha256 if running else None,
        running_counter=running.release_counter if running else 0,
        floor=device.floor if said.minimal else said.floor,
        work_state=device.work_state if said.minimal else said.work.state,
        slots=device.slots if said.minimal else {name: _slot(slot) for name, slot in said.slots.items()},
        booted=said.booted or device.booted,
        last_known_good=said.last_known_good or device.last_known_good,
        outcomes_folded=said.outcomes_folded,
        agent_version=said.agent_version or device.agent_version,
        last_seen_ms=turn.now_ms,
        heard_ms=turn.observed_ms,
    )


def _slot(slot: messages.SlotReport) -> Mapping[str, object]:
    return slot.model_dump(mode="json", exclude_none=True)


def _move(turn: Turn, device: DeviceRow, said: State) -> None:
    """Put a device where it says it is now; what it says about attempts was taken in where it was (R17, rule 3)."""
    moved = _placed(turn, device, said)
    turn.put_device(device, moved)
    if moved.group != device.group:
        left_group(turn, device)
    elif moved.class_key != device.class_key:
        active = turn.unit.active(device.group)
        if active is not None:
            turn.judge(active)  # the base may have shrunk, and no row changes (R14)


def _placed(turn: Turn, device: DeviceRow, said: State) -> DeviceRow:
    """Return the device in the group and class that it reports, unless a trial reports them (R17)."""
    if said.minimal or (not may_change_place(said.work.state) and device.class_key is not None):
        return device
    if device.class_key is not None and (said.properties, said.tags) == (device.properties, device.tags):
        return device  # as nearly every state: they were placed when they were reported first
    tag = group_tag_of(said.tags)
    placed = replace(
        device,
        properties=said.properties,
        tags=said.tags,
        group_tag=tag,
        class_key=class_key_of(said.properties),
        group=group_of(device.group_override, tag),
    )
    if (placed.group, placed.class_key) == (device.group, device.class_key):
        return placed
    return replaced_order(turn, placed)


def replaced_order(turn: Turn, device: DeviceRow) -> DeviceRow:
    """Return a device whose place changed, with its order to be decided anew if it had one or may get one."""
    if device.order_action is None and turn.unit.active(device.group) is None:
        return device
    return turn.raised(device)


def _assignments(turn: Turn, device: DeviceRow, said: State) -> dict[str, AssignmentRow]:
    """Return the assignments that a state speaks of, by deployment."""
    found = turn.unit.assignments((name, device.id) for name in sorted(_deployments_of(device, said)))
    return {deployment: row for (deployment, _), row in found.items()}


def _deployments_of(device: DeviceRow, said: State) -> set[str]:
    names = {outcome.deployment for outcome in said.outcomes}
    return names | {name for name in (said.work.deployment, device.order_deployment) if name}


def _save(turn: Turn, touched: dict[str, AssignmentRow], row: AssignmentRow, new: AssignmentRow) -> None:
    turn.save(row, new)
    touched[row.deployment] = new


def _answered(turn: Turn, device: DeviceRow, said: State, touched: dict[str, AssignmentRow]) -> None:
    """Take the answer to the newest cancel; it is about the attempt that the order named."""
    if said.answer is None or said.answer.epoch == device.answer_epoch:
        return
    row = touched.get(device.order_deployment or "")
    turn.put_device(device, replace(device, answer_epoch=said.answer.epoch, answer=said.answer.answer))
    if row is not None and device.order_action == "hold" and said.answer.epoch == device.epoch:
        _save(turn, touched, row, verdicts.cancel_answered(row, said.answer.answer, turn.now_ms))


def _worked(turn: Turn, device: DeviceRow, said: State, touched: dict[str, AssignmentRow]) -> None:
    row = touched.get(said.work.deployment or "")
    if row is None or row.attempt != said.work.attempt or said.work.state is WorkflowState.IDLE:
        return
    _save(turn, touched, row, verdicts.began(row, said.work.state, 0, 0, turn.now_ms, turn.observed_ms))


def _settled(turn: Turn, device: DeviceRow, said: State, touched: dict[str, AssignmentRow]) -> None:
    for outcome in sorted(said.outcomes, key=_when):
        row = touched.get(outcome.deployment)
        if row is None:
            continue
        newer = verdicts.is_under_newer_order(row, turn.unit.device(device.id) or device, outcome)
        if newer and outcome.result is Result.ABANDONED:
            continue
        deployment = turn.deployment(row.deployment)
        new = verdicts.settled(row, deployment, outcome, said.epoch, turn.now_ms, turn.chance)
        _save(turn, touched, row, new)
        deployments.alert_incomplete(turn, turn.deployment(row.deployment))
        if newer and new is not row and new.state is AssignmentState.FAILED:
            _order_anew(turn, device)  # else the attempt that has failed would be tried under its newer epoch


def _when(outcome: OutcomeReport) -> tuple[int, int]:
    return outcome.epoch, outcome.attempt


def _order_anew(turn: Turn, device: DeviceRow) -> None:
    """Have a device's order decided anew, unless it is to be anyway."""
    device = turn.unit.device(device.id) or device
    if not device.order_stale:
        turn.put_device(device, turn.raised(device))


def _ran(turn: Turn, device: DeviceRow, said: State, touched: dict[str, AssignmentRow]) -> None:
    """A device that had succeeded and runs something else has withdrawn its success (R18).

    One that tells another failure of that attempt tried it again, and did not fall back: its order is decided anew.
    """
    row = touched.get(device.order_deployment or "")
    if row is None:
        return
    tried_again = any(
        (outcome.deployment, outcome.attempt) == (row.deployment, row.attempt)
        and outcome.result is Result.FAILED
        and outcome.reason is not Reason.FELL_BACK
        for outcome in said.outcomes
    )
    if tried_again:
        if row.state is AssignmentState.SUCCEEDED and not is_at(device, row.sha256 or ""):
            _order_anew(turn, device)
    else:
        _save(
            turn,
            touched,
            row,
            verdicts.runs_something_else(row, turn.deployment(row.deployment), device, turn.now_ms),
        )


def look_ahead(unit: Unit, inputs: Sequence[Input], read: Sequence[Read]) -> None:
    """Read the rows that a batch will ask for, in one statement for each table: one for each message costs more
    than all the rest."""
    names = {item.device for item in inputs if isinstance(item, Delivered | Sent)}
    if len(names) < 2:
        return
    devices = unit.devices(sorted(names))
    keys = set()
    for said in read:
        if isinstance(said, Progress):
            keys.add((said.deployment, said.device))
        elif isinstance(said, State) and said.device in devices:
            keys.update((name, said.device) for name in _deployments_of(devices[said.device], said))
    unit.assignments(sorted(keys))


def read(kind: Kind, payload: bytes) -> messages.Message:
    """Read a device's message.

    Raises:
        MessageRefused: it is not one.
    """
    return messages.read(messages.MODELS[kind], payload)
