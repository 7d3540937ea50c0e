"""What the cloud tells devices: orders decided, signed and sent, and acknowledgements.

The outbox is the device row: `epoch > published_epoch` means that an order is to be sent (DESIGN.md section 4). It
decides no order by itself (`core/offers.py` does), and signs when sending, never in bulk within a trip.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from cloud_stub.core import offers
from cloud_stub.core.rows import AssignmentRow, DeviceRow
from cloud_stub.orchestrator.turn import AckDue, Turn
from cloud_stub.orchestrator.values import ORDER_LIFETIME_MS, TURN_ROWS_MAX, Publish
from protocol import messages
from protocol.envelope import DirectorKey, TrustedKeys
from protocol.errors import ServiceError
from protocol.identity import UpdateId
from protocol.messages import Ack, Assignment, Message, Repository, Sync, Target
from protocol.topics import EVERYONE, RULES, Kind, Topics

log = logging.getLogger(__name__)

RepositoryFor = Callable[[str, int], Repository]
"""Builds the signed, expiring address of the repository: (device, until when in UTC milliseconds)."""


class Outbox:
    """Builds messages to devices; it keeps nothing between transactions."""

    def __init__(self, director: DirectorKey, repository_for: RepositoryFor, topics: Topics) -> None:
        self.keys = TrustedKeys([director.public_pem])
        self._director = director
        self._repository_for = repository_for
        self._topics = topics

    def decided(self, turn: Turn, device: DeviceRow) -> DeviceRow:
        """Return the device with its order decided, if it was stale; a second look when deciding tripped a policy."""
        for _ in range(2):
            if not device.order_stale:
                return device
            self._decide(turn, device)
            device = turn.unit.device(device.id) or device
        return device

    def decide_and_send(self, turn: Turn) -> None:
        """Decide stale orders, send what devices that are online have not been sent, and acknowledge; some of each."""
        stale = turn.unit.stale(TURN_ROWS_MAX)
        _look_ahead(turn, stale)
        _each(turn, stale, lambda device: self.decided(turn, device))
        sent = {message.order for message in turn.publishes}  # in answer to a hello
        unsent = [row for row in turn.unit.unpublished(TURN_ROWS_MAX) if (row.id, row.epoch) not in sent]
        _each(turn, unsent, lambda device: self.send_order(turn, device, nonce=None))
        self._acknowledge(turn)

    def send_order(self, turn: Turn, device: DeviceRow, *, nonce: str | None) -> None:
        """Sign a device's order and send it; with the nonce of its hello when it has no epoch yet (R3)."""
        if device.order_action is None or device.order_stale:
            return
        until_ms = turn.now_ms + ORDER_LIFETIME_MS
        target = self._target(turn, device)
        order = Assignment(
            device=device.id,
            epoch=device.epoch,
            issued_ms=turn.now_ms,
            lifetime_ms=ORDER_LIFETIME_MS,
            action=device.order_action,
            deployment=device.order_deployment,
            attempt=device.order_attempt,
            nonce=nonce,
            target=target,
            repository=self._repository_for(device.id, until_ms) if target else None,
            allow_downgrade=device.order_downgrade,
        )
        envelope = self._director.sign(messages.write(order))
        turn.publishes.append(
            self._publish(Kind.DESIRED, device.id, envelope, order=(device.id, device.epoch))
        )

    def ack(
        self, turn: Turn, device: DeviceRow, *, nonce: str | None = None, refused: str | None = None
    ) -> None:
        """Tell a device what the database has of it (R6), once all of this turn is in it.

        Built at the end: an order that a later message of the batch replaced must not open the gate (R4).
        """
        turn.acks.append(AckDue(device.id, nonce, refused))

    def _acknowledge(self, turn: Turn) -> None:
        due = list(dict.fromkeys(turn.acks))
        devices = turn.unit.devices({ack.device for ack in due})
        for ack in due:
            device = devices.get(ack.device)
            if device is not None and device.instance is not None:
                said = self._ack(turn, device, device.instance, ack)
                turn.publishes.append(self._publish(Kind.ACK, device.id, messages.write(said)))

    def _ack(self, turn: Turn, device: DeviceRow, instance: str, ack: AckDue) -> Ack:
        return Ack(
            device=device.id,
            instance=instance,
            sequence=device.sequence,
            digest=device.digest,
            newest_epoch=device.epoch if device.order_action is not None or device.order_stale else 0,
            nonce=ack.nonce,
            refused=ack.refused,
            heartbeat_ms=turn.settings.heartbeat_ms,
            reconnect_spread_ms=turn.settings.reconnect_spread_ms,
        )

    def sync(self, turn: Turn) -> None:
        """Ask everyone to say hello."""
        said: Message = Sync(device=EVERYONE, window_ms=turn.settings.sync_window_ms)
        turn.publishes.append(self._publish(Kind.SYNC, EVERYONE, messages.write(said)))

    def _decide(self, turn: Turn, device: DeviceRow) -> None:
        active = turn.unit.active(device.group)
        mine = turn.unit.assignment(active.id, device.id) if active else None
        refs = (*active.updates, *(active.policy.rollback_to if active.policy else ())) if active else ()
        situation = offers.Situation(
            active=active,
            mine=mine,
            last=_last(turn, device, mine),
            catalog=turn.catalog(refs),
            restored=turn.unit.note("restored") is not None,
            now_ms=turn.now_ms,
            caused=turn.unit.assignment(active.cause, device.id) if active and active.cause else None,
        )
        offer = offers.offer(device, situation)
        order = offer.order
        decided = replace(
            device,
            order_stale=False,
            order_action=order.action,
            order_deployment=order.deployment,
            order_attempt=order.attempt,
            order_update=order.update,
            order_sha256=order.sha256,
            order_downgrade=order.downgrade,
            order_why=order.why,
        )
        turn.put_device(device, decided)
        if offer.assignment is not None:
            row = offer.assignment
            turn.save(mine, replace(row, epoch=device.epoch) if order.action == "install" else row)

    def _target(self, turn: Turn, device: DeviceRow) -> Target | None:
        if device.order_action != "install" or device.order_update is None or device.order_sha256 is None:
            return None
        update = turn.unit.update_by_sha256(device.order_sha256)
        size_bytes = update.size_bytes if update else 0
        path = UpdateId.parse(device.order_update).manifest_path
        return Target(
            update=device.order_update, path=path, size_bytes=size_bytes, sha256=device.order_sha256
        )

    def _publish(
        self, kind: Kind, device: str, payload: bytes, order: tuple[str, int] | None = None
    ) -> Publish:
        return Publish(kind, device, self._topics.build(kind, device), payload, RULES[kind].qos, order)


def _each(turn: Turn, devices: Sequence[DeviceRow], act: Callable[[DeviceRow], object]) -> None:
    """Do something for each device; one that cannot be done is left as it was, and keeps no other waiting."""
    mark = turn.mark()
    try:
        with turn.unit.savepoint():
            for device in devices:
                act(turn.unit.device(device.id) or device)  # an earlier one may have tripped a policy
        return
    except ServiceError:
        raise
    except Exception:  # noqa: BLE001 - said below: one poisonous row must not stop all others in every turn
        turn.undo(mark)
    for device in devices:
        mark = turn.mark()
        try:
            with turn.unit.savepoint():
                act(turn.unit.device(device.id) or device)
        except ServiceError:
            raise
        except Exception:
            turn.undo(mark)
            log.exception("the order of %s cannot be made", device.id)


def _look_ahead(turn: Turn, stale: Sequence[DeviceRow]) -> None:
    """Read in one statement the assignments that deciding these orders will ask for."""
    active = {group: turn.unit.active(group) for group in {device.group for device in stale}}
    of_active = [(row, device.id) for device in stale if (row := active[device.group]) is not None]
    keys = {(row.id, device) for row, device in of_active}
    keys |= {(row.cause, device) for row, device in of_active if row.cause is not None}
    keys |= {(device.order_deployment, device.id) for device in stale if device.order_deployment is not None}
    if keys:
        turn.unit.assignments(sorted(keys))


def _last(turn: Turn, device: DeviceRow, mine: AssignmentRow | None) -> AssignmentRow | None:
    """Return the row behind the device's last order, when it belongs to another deployment than the active one."""
    if device.order_deployment is None or (mine is not None and mine.deployment == device.order_deployment):
        return None
    return turn.unit.assignment(device.order_deployment, device.id)
