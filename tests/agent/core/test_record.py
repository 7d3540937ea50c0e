"""The record and the slot table on the disk: exact both ways, and with room for what a newer agent adds (R26)."""

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import Holds, Record, Slot, SlotTable, Workflow
from agent.core.record import decode, decode_slots, encode, encode_slots
from protocol.errors import DeviceError
from protocol.lifecycle import WorkflowState as S
from protocol.messages import OutcomeReport
from protocol.outcomes import Reason, Result
from tests.agent.builders import a_hold, a_manifest, an_order, signed, slots_in_trial

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
        {"workflow": {"state": "dancing"}},
        {"workflow": {"state": "ready"}},
        {"workflow": {"slot": "C"}},
        {"workflow": {"order": {"schema": 1}}},
        {"workflow": []},
        {"outcomes": [{"first": 1}]},
        {"outcomes": 3},
        {"answer": "perhaps"},
        {"ended": ["d"]},
    ],
)
def test_what_is_no_record_is_a_device_error_and_never_a_crash(change: dict[str, object]) -> None:
    """The agent then goes on as R3 says, rather than not at all."""
    raw = json.loads(encode(FULL)) | change
    with pytest.raises(DeviceError):
        decode(json.dumps(raw).encode())


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
