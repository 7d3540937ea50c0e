"""What a device tells and how often: repair, outcomes as a list, sequence and instance (R6, R7, R8), and heartbeats."""

from dataclasses import replace
from itertools import pairwise

import pytest

from agent.core import reporting
from agent.core.model import Delivered, Described, Progressed, Publish, Record, Save
from agent.core.record import encode
from agent.core.settings import Settings
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState as S
from protocol.messages import OUTCOMES_MAX, OutcomeReport, State, Sync, read, write
from protocol.outcomes import Reason, Result
from protocol.topics import Kind
from tests.agent.builders import a_hold, a_manifest, an_order
from tests.agent.fakes_core import Rig

NEW = a_manifest("2.0")
MINUTE, HOUR = 60_000, 3_600_000


def acknowledged_rig(**settings: object) -> Rig:
    """Return a connected device whose newest state the cloud has."""
    rig = Rig(settings=Settings(**settings)).start().connect()  # type: ignore[arg-type]
    rig.answer_hello()
    while rig.answer_hello():
        pass
    assert rig.device.acknowledged
    return rig


def an_outcome(epoch: int, **changes: object) -> OutcomeReport:
    """Return a failed attempt."""
    fields = {
        "epoch": epoch,
        "deployment": f"d{epoch}",
        "attempt": 1,
        "result": Result.FAILED,
        "reason": Reason.NETWORK,
    }
    return OutcomeReport(**{**fields, **changes})  # type: ignore[arg-type]


def test_R6_hello_comes_only_after_the_subscriptions_are_granted() -> None:
    """A start alone says nothing; `Connected` does, with the connection's nonce and one to be answered."""
    rig = Rig().start()
    assert rig.sent == []
    rig.connect()
    assert [publish.kind for publish in rig.sent] == [Kind.HELLO]
    assert (rig.hellos[0].connection, rig.hellos[0].sequence) == ("connection-1", rig.device.record.sequence)
    assert rig.hellos[0].nonce


def test_R6_a_state_that_is_not_the_one_acknowledged_is_sent_at_once() -> None:
    """The answer to hello shows an older sequence: the device sends its state; one that matches ends the matter."""
    rig = Rig().start().connect()
    rig.ack(nonce=rig.hellos[-1].nonce)
    assert rig.sent[-1].kind is Kind.STATE
    rig.answer_hello()
    assert rig.device.acknowledged
    assert not rig.sent


def test_R6_a_cloud_that_lost_its_data_gets_the_state_again() -> None:
    """An acknowledgement that goes back makes the device send again."""
    rig = acknowledged_rig()
    rig.ack(sequence=0, digest=None)
    assert rig.sent[-1].kind is Kind.STATE


def test_R6_an_unacknowledged_state_is_sent_again_with_back_off() -> None:
    """1 to 120 s, full jitter, until it is acknowledged."""
    rig = acknowledged_rig(heartbeat_ms=HOUR)
    rig.do(Described(rig.properties, {"group": "hall-2"}))
    times = [rig.now_ms]
    while len(times) < 12:
        before = len(rig.states)
        rig.tick()
        times += [rig.now_ms] * (len(rig.states) - before)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(1_000 <= gap <= min(120_000, 2_000 * 2**turn) for turn, gap in enumerate(gaps))
    assert max(gaps) > 20_000
    rig.answer_hello()
    rig.tick()
    assert rig.now_ms - times[-1] > 120_000, "nothing but the heartbeat is due"


def test_R6_refused_makes_the_minimal_state_once_and_then_hourly() -> None:
    """Identity, epoch, running and outcomes; the whole state is tried again after an hour."""
    rig = acknowledged_rig(heartbeat_ms=24 * HOUR)
    rig.do(Described(rig.properties, {"group": "hall-2"}))
    assert not rig.states[-1].minimal
    rig.ack(refused="tags")
    minimal = rig.states[-1]
    assert minimal.minimal
    assert (minimal.tags, minimal.slots, minimal.running is None) == ({}, {}, False)
    rig.ack(refused="still")
    count, refused_at = len(rig.states), rig.now_ms
    rig.first_order(an_order(10, a_manifest("1.0")))
    assert len(rig.states) == count, "what is new waits for the hour too"
    while len(rig.states) == count:
        rig.tick()
    assert rig.now_ms - refused_at >= HOUR
    assert not rig.states[-1].minimal


def test_R6_a_refusal_heard_twice_does_not_silence_the_minimal_state() -> None:
    """The same whole state was refused again, or the ack came again: what is new is told at once."""
    rig = acknowledged_rig(heartbeat_ms=24 * HOUR)
    rig.do(Described(rig.properties, {"group": "hall-2"}))
    rig.ack(refused="tags")
    rig.ack(refused="tags")
    rig.answer_hello()
    count = len(rig.states)
    rig.first_order(an_order(10, a_manifest("1.0")))
    assert [outcome.deployment for outcome in rig.states[-1].outcomes] == ["d10"]
    assert len(rig.states) == count + 1


def test_R6_a_hello_whose_answer_is_lost_is_said_again() -> None:
    """Until a nonce of this connection comes back."""
    rig = acknowledged_rig()
    rig.disconnect()
    rig.connect()
    count = len(rig.hellos)
    rig.tick()
    assert len(rig.hellos) == count + 1
    assert rig.now_ms < MINUTE
    rig.answer_hello()
    rig.tick()
    assert rig.hellos[-1].nonce is not None, "a device without an order offers a nonce with every hello (R3)"
    assert rig.now_ms >= MINUTE


def test_R7_outcomes_travel_until_an_acknowledgement_covers_the_state_that_carried_them() -> None:
    """An acknowledgement of an older sequence keeps them on the disk."""
    rig = acknowledged_rig()
    rig.first_order(an_order(10, a_manifest("1.0")))
    first, told = rig.device.record.outcomes[0][0], rig.states[-1]
    assert first == rig.states[-1].sequence == rig.device.record.sequence
    rig.ack(sequence=first - 1)
    assert rig.outcomes
    assert rig.record.outcomes
    rig.do(Described(rig.properties, {"group": "hall-9"}))
    assert [outcome.deployment for outcome in rig.states[-1].outcomes] == ["d10"]
    rig.ack(sequence=first, digest="0" * 64)
    assert rig.outcomes, "the cloud holds something else under that number"
    rig.ack(sequence=first, digest=told.digest)
    assert rig.outcomes == []
    assert rig.record.outcomes == ()


def test_R7_a_failure_is_not_lost_when_a_rollback_order_arrives_next() -> None:
    """Offline through a failure and two more orders, the device tells all of them."""
    rig = acknowledged_rig()
    rig.first_order(
        an_order(10, a_manifest("2.0", compatibility={"model": "x"})),
        a_manifest("2.0", compatibility={"model": "x"}),
    )
    rig.perform(rig.waiting[-1])
    rig.order(an_order(11, a_manifest("1.0")))
    rig.order(a_hold(12))
    rig.lose_power()
    rig.connect()
    rig.work()
    assert [(seen[0], seen[2]["reason"]) for seen in rig.seen] == [
        ("d10", Reason.INCOMPATIBLE),
        ("d11", None),
    ]


def test_R7_beyond_the_cap_the_oldest_is_folded_into_a_count() -> None:
    """A state never carries more than OUTCOMES_MAX, and says how many it could not."""
    record = Record("i")
    for epoch in range(OUTCOMES_MAX + 3):
        record = reporting.with_outcome(record, an_outcome(epoch))
    assert len(record.outcomes) == OUTCOMES_MAX
    assert record.outcomes_folded == 3
    assert record.outcomes[0][1].epoch == 3
    assert reporting.acknowledged(replace(record, sequence=7), 7).outcomes_folded == 0


def test_R7_an_attempt_has_one_outcome_and_only_a_fall_back_takes_its_place() -> None:
    """Keyed (epoch, deployment, attempt): the same again changes nothing."""
    record = reporting.with_outcome(Record("i"), an_outcome(1, result=Result.SUCCEEDED, reason=None))
    assert reporting.with_outcome(record, an_outcome(1, result=Result.SUCCEEDED, reason=None)) is record
    after = reporting.with_outcome(record, an_outcome(1, reason=Reason.FELL_BACK))
    assert [outcome.reason for _, outcome in after.outcomes] == [Reason.FELL_BACK]


def test_R8_a_new_folder_is_a_new_instance_that_starts_at_one() -> None:
    """Without a record the device makes a random instance; its first state bears sequence 1."""
    rig = Rig().start().connect()
    first = rig.device.record
    assert first.sequence == 1
    rig.start(record_lost=True)
    assert rig.device.record.instance != first.instance
    assert rig.device.record.sequence == 1


def test_R8_the_sequence_grows_exactly_when_the_content_does_and_is_on_the_disk_first() -> None:
    """Every state that was sent was saved with its number and digest before; equal content never gets a new number."""
    rig = acknowledged_rig()
    rig.first_order(an_order(10, NEW), NEW)
    rig.work()
    saved: set[tuple[int, str]] = set()
    contents: dict[int, bytes] = {}
    for effect in rig.log:
        if isinstance(effect, Save):
            saved.add((effect.record.sequence, effect.record.digest))
        elif isinstance(effect, Publish) and effect.kind is Kind.STATE:
            state = read(State, effect.payload)
            assert (state.sequence, state.digest) in saved
            assert contents.setdefault(state.sequence, effect.payload) == effect.payload
    assert sorted(contents) == list(contents)
    before = rig.device.record.sequence
    rig.do(Described(dict(rig.properties), {"group": "hall-1"}))
    assert rig.device.record.sequence == before


def test_R8_a_disk_that_came_back_from_a_copy_numbers_past_what_the_cloud_has() -> None:
    """The cloud holds a later sequence of this instance: nothing is pruned by it, and the next state is later still."""
    rig = acknowledged_rig()
    rig.first_order(an_order(10, a_manifest("1.0")))
    rig.ack(sequence=500, digest="0" * 64)
    assert rig.outcomes
    assert rig.states[-1].sequence == 501


def test_the_heartbeat_follows_the_cloud() -> None:
    """60 s by default; what an ack says holds from then on."""
    rig = acknowledged_rig()
    rig.ack(heartbeat_ms=10_000, reconnect_spread_ms=3_000)
    rig.tick()
    first = rig.now_ms
    rig.tick()
    assert (first, rig.now_ms - first) == (MINUTE, 10_000)
    assert rig.device.reconnect_spread_ms == 3_000


def test_a_sync_makes_everyone_say_hello_within_its_window() -> None:
    """After a uniform delay; the device field must be everybody's."""
    delays = []
    for seed in range(40):
        rig = Rig(seed=seed, settings=Settings(heartbeat_ms=HOUR)).start().connect()
        while rig.answer_hello():
            pass
        rig.do(Delivered(Kind.SYNC, write(Sync(device="all", window_ms=30_000))))
        count = len(rig.hellos)
        rig.tick()
        assert len(rig.hellos) == count + 1
        delays.append(rig.now_ms)
    assert max(delays) <= 30_000
    assert min(delays) < 6_000
    assert max(delays) > 24_000


def test_progress_is_told_at_a_limited_rate_and_lost_without_harm() -> None:
    """At most one message in `progress_interval_ms`, about the work in hand alone."""
    rig = acknowledged_rig()
    rig.first_order(an_order(10, NEW), NEW)
    rig.work(until=S.DOWNLOADING)
    tag = rig.waiting[-1].tag  # type: ignore[union-attr]
    for step in range(50):
        rig.now_ms += 100
        rig.do(Progressed(tag, step, 50))
    told = [effect for effect in rig.log if isinstance(effect, Publish) and effect.kind is Kind.PROGRESS]
    assert 2 <= len(told) <= 3
    rig.do(Progressed(replace(tag, ordinal=99), 1, 50))
    rig.now_ms += 5_000
    rig.do(Progressed(replace(tag, ordinal=99), 1, 50))
    assert len([e for e in rig.log if isinstance(e, Publish) and e.kind is Kind.PROGRESS]) == len(told)


@pytest.mark.parametrize("text", ["line\nbreak", "\x00\x1b[31m", "x" * 4_000])
def test_texts_of_adapters_never_break_a_report(text: str) -> None:
    """Control characters and long texts are made fit for the wire."""
    rig = acknowledged_rig()
    rig.first_order(an_order(10, NEW), NEW)
    rig.work(until=S.CONFIRMING)
    rig.finish(rig.waiting[-1], E.HEALTH_FAILED, detail=text)
    rig.perform(rig.waiting[-1])
    rig.work()
    assert rig.held is not None
    assert rig.seen[-1][2]["result"] is Result.FAILED
    assert encode(rig.device.record)


def test_R8_an_acknowledgement_of_a_number_that_leaves_no_room_is_refused() -> None:
    """Else the next report would have a number that nobody reads, for ever: it is on the disk."""
    rig = Rig().start().connect()
    rig.answer_hello()
    before = rig.device.record.sequence
    for sequence in (2**53 - 1, 2**52):
        rig.ack(sequence=sequence, digest="1" * 64)
    assert rig.device.record.sequence == before
    rig.ack(sequence=before + 1_000, digest="1" * 64)
    rig.do(Described(rig.properties, {"group": "hall-9"}))
    rig.tick()
    assert rig.states[-1].sequence > before + 1_000
