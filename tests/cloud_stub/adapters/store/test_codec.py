"""Rows and their columns."""

import json
import pickle
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_stub.adapters.store import codec, tables
from cloud_stub.adapters.store.codec import Codec, Stored, mapping_of, text_of
from cloud_stub.core.rows import (
    AssignmentRow,
    DeploymentRow,
    DeviceRow,
    Policy,
    Tally,
    Trip,
    UpdateRef,
    UpdateRow,
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_MAPPING = st.dictionaries(_TEXT, _TEXT, max_size=3)
_REFS = st.lists(st.builds(UpdateRef, _TEXT, _TEXT), min_size=1, max_size=2).map(tuple)
_POLICY = st.builds(Policy, rollback_to=_REFS)
_COMPATIBILITY = st.lists(_MAPPING, max_size=2).map(tuple)

CODECS = [
    (codec.DEVICE, tables.devices),
    (codec.ASSIGNMENT, tables.assignments),
    (codec.DEPLOYMENT, tables.deployments),
    (codec.UPDATE, tables.updates),
    (codec.NOTE, tables.notes),
    (codec.AUDIT, tables.audit),
]


@pytest.mark.parametrize(("rows", "table"), CODECS, ids=lambda value: getattr(value, "name", ""))
def test_columns_stand_in_the_order_of_the_fields(rows: Codec[object], table: object) -> None:
    """A tuple of columns is read and written by position, so the order is the contract."""
    assert list(rows.columns) == [column.name for column in table.columns]  # type: ignore[attr-defined]


def test_the_tally_is_columns_in_its_own_order() -> None:
    """The tally's columns come last, and bear its names."""
    names = [field.name for field in fields(Tally)]
    assert list(codec.DEPLOYMENT.columns[-len(names) :]) == [f"tally_{name}" for name in names]


@settings(max_examples=60)
@given(
    st.builds(
        DeviceRow, properties=_MAPPING, tags=_MAPPING, slots=st.dictionaries(_TEXT, _MAPPING, max_size=2)
    )
)
def test_a_device_comes_back_as_it_went(row: DeviceRow) -> None:
    """What is decoded equals what was encoded, and its types are those of the row."""
    back = codec.DEVICE.decode(codec.DEVICE.encode(row))
    assert back == row
    assert [type(getattr(back, name)) for name in ("online", "work_state")] == [bool, type(row.work_state)]


@settings(max_examples=60)
@given(st.from_type(AssignmentRow))
def test_an_assignment_comes_back_as_it_went(row: AssignmentRow) -> None:
    """What is decoded equals what was encoded."""
    assert codec.ASSIGNMENT.decode(codec.ASSIGNMENT.encode(row)) == row


@settings(max_examples=60)
@given(
    st.builds(DeploymentRow, updates=_REFS, policy=st.none() | _POLICY, trip=st.none() | st.from_type(Trip))
)
def test_a_deployment_comes_back_as_it_went(row: DeploymentRow) -> None:
    """Policy, trip and tally are whole again."""
    assert codec.DEPLOYMENT.decode(codec.DEPLOYMENT.encode(row)) == row


@settings(max_examples=30)
@given(st.builds(UpdateRow, compatibility=_COMPATIBILITY, manifest=st.binary(max_size=20)))
def test_an_update_comes_back_as_it_went(row: UpdateRow) -> None:
    """The manifest's bytes are the same bytes."""
    assert codec.UPDATE.decode(codec.UPDATE.encode(row)) == row


@pytest.mark.parametrize("kind", [DeviceRow, AssignmentRow, DeploymentRow])
def test_every_flag_and_word_of_a_row_is_plain_in_the_database(kind: type) -> None:
    """Only exact ints, strings, bytes and None reach the driver: anything else would depend on the dialect."""
    for field in fields(kind):
        types = set(get_args(get_type_hints(kind)[field.name])) or {get_type_hints(kind)[field.name]}
        if bool in types:
            assert field.name in _converted(kind), f"{field.name} is a flag without its conversion"


def _converted(kind: type) -> set[str]:
    rows: Codec[object] = {  # type: ignore[assignment]
        DeviceRow: codec.DEVICE,
        AssignmentRow: codec.ASSIGNMENT,
        DeploymentRow: codec.DEPLOYMENT,
    }[kind]
    return {rows.columns[place] for place in rows.writer_of}


def test_equal_mappings_are_equal_text() -> None:
    """The order in which a mapping was made does not show."""
    assert text_of({"b": "1", "a": "ü"}) == text_of({"a": "ü", "b": "1"}) == '{"a":"ü","b":"1"}'


def test_a_stored_mapping_is_a_dict_that_is_never_changed() -> None:
    """Rows share it: it can be read, compared, copied, pickled and written as JSON, and refuses a change."""
    stored = mapping_of('{"a":"b"}')
    assert stored == {"a": "b"}
    assert json.dumps(stored) == '{"a": "b"}'
    assert pickle.loads(pickle.dumps(stored)) == stored  # noqa: S301 - our own bytes
    assert type(dict(stored)) is dict
    with pytest.raises(TypeError):
        stored["a"] = "c"
    with pytest.raises(TypeError):
        stored.update(a="c")
    with pytest.raises(TypeError):
        del stored["a"]
    assert isinstance(stored, Stored)


def test_a_row_with_a_changed_mapping_is_written_with_it() -> None:
    """The text kept beside a stored mapping is not used for the mapping that replaced it."""
    row = codec.DEVICE.decode(codec.DEVICE.encode(DeviceRow("a", 1, tags={"x": "1"})))
    changed = replace(row, tags={**row.tags, "x": "2"})
    assert codec.DEVICE.decode(codec.DEVICE.encode(changed)).tags == {"x": "2"}
