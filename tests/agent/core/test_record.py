"""The record and the slot table on the disk: exact both ways, and with room for what a newer agent adds (R26)."""

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import Holds, Record, Revert, Slot, SlotTable, Workflow
from agent.core.record import RECORD_BYTES_MAX, decode, decode_slots, encode, encode_slots
from protocol.errors import DeviceError
from protocol.lifecycle import WorkflowState as S
from protocol.messages import OUTCOMES_MAX, OutcomeReport
from protocol.outcomes import Reason, Result
from tests.agent.builders import a_hold, a_manifest, an_order, signed, slots_in_trial, slots_running
from tests.agent.fakes_core import Rig

OUTCOME = OutcomeReport(
    epoch=9, deployment="d9", attempt=2, result=Result.FAILED, phase=S.CONFIRMING, reason=Reason.HEALTH_FAILED
)
FULL = Record(
    instance="i-1",
    start=7,
    epoch=12,
    envelope=signed(an_order(12)),
    workflow=Workflow(
        S.REVERTING,
        an_order(10),
        a_hold(12, "d10", 1),
        "B",
        verdict=OUTCOME,
        tries=2,
        stuck="no",
        ordinal=31,
        health_held=True,
        cloud_reached=True,
    ),
    outcomes=((0, OUTCOME), (5, OUTCOME)),
    outcomes_folded=1,
    ended=("d9", 2),
    answer_epoch=11,
    answer="too_late",
    sequence=44,
    digest="d" * 64,
    floor=3,
)
TABLE = slots_in_trial(a_manifest("1.0"), a_manifest("2.0"))
IDENTITY = ("instance", "start", "epoch", "envelope", "ended", "sequence", "digest", "floor")

ORDER_OF_NEXT_VERSION = {"order": {"schema": 2, "device": "press-17", "goal": {}}}
NEWER_WORKFLOWS: list[dict[str, Any]] = [
    {"state": "dancing"},
    {"phase": "patching"},
    {"slot": "C"},
    ORDER_OF_NEXT_VERSION,
    {"order": {"schema": 1}},
    {"state": "ready", "order": None},
    {"tries": {"network": 2}},
    {"health_held": "in part"},
    {"stuck": ["no", "really not"]},
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["state", "order", "next", "verdict", "first", "outcome"]), inner)
    ),
    max_leaves=6,
)


def of_next_version(record: Record, workflow: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """Return the bytes of a record, with changes at its top and in its workflow."""
    raw = json.loads(encode(record)) | changes
    raw["workflow"] |= workflow or {}
    return json.dumps(raw).encode()


def identity_of(record: Record) -> list[object]:
    """Return what has to survive whatever a newer agent was working on."""
    return [getattr(record, name) for name in IDENTITY]


@pytest.mark.parametrize("record", [Record("i"), FULL])
def test_a_record_reads_back_as_it_was_written(record: Record) -> None:
    """encode and decode are inverses."""
    assert decode(encode(record)) == record


def test_a_slot_table_reads_back_as_it_was_written() -> None:
    """Both slots, what is booted, and where to go back to."""
    for table in (TABLE, SlotTable({"A": Slot(), "B": Slot(Holds.BAD, reason="decayed")}, "A", "A")):
        assert decode_slots(encode_slots(table)) == table


def test_R26_a_record_of_the_next_version_is_read_and_its_new_fields_survive_a_save() -> None:
    """Fields at the top and in the workflow, and the higher format number, pass through this version's changes."""
    raw = json.loads(encode(FULL))
    raw.update(format=2, window={"start_ms": 5}, consent=True)
    raw["workflow"].update(delta_base="a" * 64)
    read = decode(json.dumps(raw).encode())
    assert read.workflow == FULL.workflow
    assert read.epoch == 12
    written = json.loads(encode(replace(read, sequence=45, workflow=Workflow())))
    assert (written["format"], written["window"], written["consent"]) == (2, {"start_ms": 5}, True)
    assert (written["workflow"]["delta_base"], written["workflow"]["state"], written["sequence"]) == (
        "a" * 64,
        "idle",
        45,
    )


def test_R26_a_slot_table_of_the_next_version_keeps_its_new_fields_through_a_move() -> None:
    """At the top and in each slot."""
    raw = json.loads(encode_slots(TABLE))
    raw.update(format=2, layout="gpt")
    raw["slots"]["A"]["verity"] = "root"
    read = decode_slots(json.dumps(raw).encode())
    assert read.slots == TABLE.slots
    written = json.loads(encode_slots(replace(read, booted="A")))
    assert (written["format"], written["layout"], written["slots"]["A"]["verity"]) == (2, "gpt", "root")
    assert written["booted"] == "A"


def test_R26_a_record_of_the_first_format_without_later_fields_is_read() -> None:
    """Only the instance is indispensable: what is missing has its default."""
    assert decode(b'{"format": 1, "instance": "i-1"}') == Record("i-1")


@pytest.mark.parametrize(
    "change",
    [
        {"instance": 5},
        {"epoch": -1},
        {"epoch": True},
        {"envelope": "not base64!"},
        {"envelope": ["e"]},
        {"start": "seven"},
        {"outcomes_folded": None},
        {"sequence": 1.5},
        {"digest": None},
        {"floor": -1},
        {"ended": ["d"]},
    ],
)
def test_what_is_no_record_is_a_device_error_and_never_a_crash(change: dict[str, object]) -> None:
    """The agent then goes on as R3 says, rather than not at all."""
    raw = json.loads(encode(FULL)) | change
    with pytest.raises(DeviceError):
        decode(json.dumps(raw).encode())


def test_a_record_that_is_too_long_is_a_device_error() -> None:
    """It is not even parsed."""
    with pytest.raises(DeviceError):
        decode(encode(replace(FULL, digest="d" * RECORD_BYTES_MAX)))


@pytest.mark.parametrize(
    "change",
    [
        {"workflow": []},
        {"workflow": None},
        {"workflow": {"state": "dancing"}},
        {"workflow": {"state": "ready"}},
        {"workflow": {"slot": "C"}},
        {"workflow": {"order": {"schema": 1}}},
        {"outcomes": [{"first": 1}]},
        {"outcomes": [3, None]},
        {"outcomes": 3},
        {"answer": "perhaps"},
        {"answer": {"word": "held"}},
        {"answer_epoch": "the newest"},
    ],
)
def test_R26_identity_and_epoch_survive_whatever_stands_in_the_work(change: dict[str, object]) -> None:
    """A newer agent's work is no reason to become another instance, to forget the epoch or to lower the floor."""
    assert identity_of(decode(json.dumps(json.loads(encode(FULL)) | change).encode())) == identity_of(FULL)


@given(JSON, JSON, JSON)
def test_R26_any_work_at_all_leaves_a_record_that_can_be_saved(
    workflow: object, outcomes: object, answer: object
) -> None:
    """What was read once is read the same again, and nothing is counted twice."""
    raw = json.loads(encode(FULL)) | {"workflow": workflow, "outcomes": outcomes, "answer": answer}
    read = decode(json.dumps(raw).encode())
    assert identity_of(read) == identity_of(FULL)
    assert decode(encode(read)) == read


@pytest.mark.parametrize("change", NEWER_WORKFLOWS)
def test_R26_a_workflow_of_the_next_version_is_idle_and_what_waits_stays(change: dict[str, Any]) -> None:
    """The ordinal goes on too, so that no tag is used twice; the verdict that was to be told is counted."""
    read = decode(of_next_version(FULL, change))
    assert read.workflow == Workflow(next=FULL.workflow.next, ordinal=31)
    assert read.outcomes_folded == FULL.outcomes_folded + 1
    assert (identity_of(read), read.outcomes) == (identity_of(FULL), FULL.outcomes)
    assert decode(of_next_version(FULL, {**change, "ordinal": "many", "next": 3})).workflow == Workflow()


@pytest.mark.parametrize("change", NEWER_WORKFLOWS)
def test_R26_a_trial_of_the_next_version_is_reverted_and_anything_else_stays(change: dict[str, Any]) -> None:
    """The slots decide: the same instance goes on, and what was booted in trial goes back as record_lost."""
    record = replace(FULL, workflow=Workflow(S.CONFIRMING, an_order(12), slot="B"))
    for table, state in ((TABLE, S.REVERTING), (slots_running(a_manifest("1.0")), S.IDLE)):
        rig = Rig(slots=table)
        rig.disk = of_next_version(record, change)
        rig.start()
        assert (rig.state, rig.record.instance, rig.record.epoch) == (state, "i-1", 12)
        reverts = [effect for effect in rig.log if isinstance(effect, Revert)]
        assert [effect.reason for effect in reverts] == [Reason.RECORD_LOST] * (state is S.REVERTING)
        assert rig.connect().work().state is S.IDLE
        assert rig.slots.booted == rig.slots.last_known_good == "A"


def test_R26_an_unknown_verdict_or_waiting_order_costs_no_more_than_itself() -> None:
    """The device goes on going back; the verdict, which can no longer be told, is counted (R7)."""
    verdict = {"verdict": {"epoch": 10, "deployment": "d10", "attempt": 1, "result": "postponed"}}
    read = decode(of_next_version(FULL, verdict))
    assert (read.workflow, read.outcomes_folded) == (replace(FULL.workflow, verdict=None), 2)
    read = decode(of_next_version(FULL, {"next": ORDER_OF_NEXT_VERSION["order"]}))
    assert (read.workflow, read.outcomes_folded) == (replace(FULL.workflow, next=None), 1)


@pytest.mark.parametrize(
    "change",
    [
        {"reason": "sunspots"},
        {"result": "postponed"},
        {"phase": "dancing"},
        {"result": "abandoned", "abandoned": "bored"},
        {"attempt": [2, 1]},
    ],
)
def test_R26_an_outcome_of_the_next_version_is_folded_into_the_count(change: dict[str, Any]) -> None:
    """The cloud still hears how many there were; the others stay, in their order (R7)."""
    outcomes = json.loads(encode(FULL))["outcomes"]
    newer = {"first": 4, "outcome": outcomes[0]["outcome"] | change}
    read = decode(of_next_version(FULL, outcomes=[outcomes[0], newer, outcomes[1]]))
    assert (read.outcomes, read.outcomes_folded) == (FULL.outcomes, FULL.outcomes_folded + 1)
    assert decode(encode(read)) == read  # and is counted once


def test_R26_more_outcomes_than_a_report_carries_are_folded_from_the_oldest() -> None:
    """A newer agent may keep more; this one could not build the report that has to tell them (R7)."""
    told = tuple((0, OUTCOME.model_copy(update={"attempt": n})) for n in range(OUTCOMES_MAX + 3))
    read = decode(encode(replace(FULL, outcomes=told)))
    assert (read.outcomes, read.outcomes_folded) == (told[3:], FULL.outcomes_folded + 3)


def test_R26_new_fields_inside_orders_and_outcomes_survive_a_save() -> None:
    """Wherever the part now stands: the order that waited is in work, the verdict is an outcome."""
    raw = json.loads(encode(replace(FULL, outcomes=((0, OUTCOME),))))
    work = raw["workflow"]
    work["order"]["target"]["mirror"] = "eu"
    work["next"]["consent"] = True
    work["verdict"] |= {"attempt": 3, "log": ["x"]}
    raw["outcomes"][0]["outcome"]["blame"] = {"party": "sun"}
    read = decode(json.dumps(raw).encode())
    assert replace(read, unknown={}) == replace(
        FULL,
        outcomes=((0, OUTCOME),),
        workflow=replace(FULL.workflow, verdict=OUTCOME.model_copy(update={"attempt": 3})),
    )
    assert json.loads(encode(replace(read, sequence=45))) == raw | {"sequence": 45}
    verdict = read.workflow.verdict
    assert verdict is not None
    ended = Workflow(S.DOWNLOADING, read.workflow.next, ordinal=32)
    written = json.loads(encode(replace(read, workflow=ended, outcomes=((7, OUTCOME), (0, verdict)))))
    assert written["workflow"]["order"] == work["next"]
    assert [entry["outcome"] for entry in written["outcomes"]] == [
        raw["outcomes"][0]["outcome"],
        work["verdict"],
    ]


def test_R26_new_fields_never_pass_to_another_order_or_outcome() -> None:
    """What has changed is written in this version's words alone: nobody knows whether they still hold."""
    work = Workflow(S.CONFIRMING, an_order(10), slot="B")
    raw = json.loads(encode(replace(FULL, workflow=work, outcomes=((0, OUTCOME),))))
    raw["workflow"]["order"]["consent"] = True
    raw["outcomes"][0]["outcome"]["blame"] = "sun"
    read = decode(json.dumps(raw).encode())
    fell_back = OUTCOME.model_copy(update={"reason": Reason.FELL_BACK})  # it takes the other's place (R18)
    adopted = replace(read.workflow, order=an_order(13))
    written = encode(replace(read, workflow=adopted, outcomes=((0, fell_back),)))
    assert b"consent" not in written
    assert b"blame" not in written
    assert decode(written).workflow == adopted


@pytest.mark.parametrize("change", [{"answer": "perhaps"}, {"answer": 3}])
def test_R26_an_answer_of_the_next_version_is_dropped(change: dict[str, Any]) -> None:
    """There is no word for it; everything else stays."""
    assert decode(of_next_version(FULL, **change)) == replace(FULL, answer=None)


def test_R26_a_slot_that_holds_a_word_of_the_next_version_is_unknown_and_keeps_its_identity() -> None:
    """Unknown is a legal answer, and not bad; starts left belong to a trial alone. A third slot is passed through."""
    raw = json.loads(encode_slots(TABLE))
    raw["slots"]["B"] |= {"holds": "probation", "verity": "root"}
    raw["slots"]["C"] = {"holds": "golden"}
    read = decode_slots(json.dumps(raw).encode())
    assert read.slots == {
        **TABLE.slots,
        "B": replace(TABLE.slots["B"], holds=Holds.UNKNOWN, starts_left=None),
    }
    assert (read.booted, read.last_known_good) == (TABLE.booted, TABLE.last_known_good)
    written = json.loads(encode_slots(read))["slots"]
    assert (written["B"]["holds"], written["B"]["verity"], written["C"]) == (
        "unknown",
        "root",
        {"holds": "golden"},
    )


@pytest.mark.parametrize(
    "change",
    [{"booted": "C"}, {"last_known_good": None}, {"slots": {}}, {"slots": {"A": {"holds": 5}, "B": {}}}],
)
def test_what_is_no_slot_table_is_a_device_error(change: dict[str, object]) -> None:
    """The backend then says that it does not know."""
    with pytest.raises(DeviceError):
        decode_slots(json.dumps(json.loads(encode_slots(TABLE)) | change).encode())


@given(
    st.binary(max_size=60)
    | st.from_regex(r'\{"[a-z]{1,8}": ?(null|[0-9]|\[\]|\{\})\}', fullmatch=True).map(str.encode)
)
def test_arbitrary_bytes_are_refused_cleanly(data: bytes) -> None:
    """Nothing but DeviceError leaves the decoders."""
    for decoder in (decode, decode_slots):
        with pytest.raises(DeviceError):
            decoder(data)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_record_with_one_byte_changed_is_read_or_refused(place: int, value: int) -> None:
    """A decayed disk never raises anything else."""
    data = bytearray(encode(FULL))
    data[place % len(data)] = value
    with contextlib.suppress(DeviceError):
        assert decode(bytes(data)).start >= 0
