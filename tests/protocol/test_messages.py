"""Messages: `read` and `write` are inverses for every model, and what is not of the model is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MessageRefused
from protocol.lifecycle import WorkflowState
from protocol.messages import (
    DETAIL_CHARACTERS_MAX,
    EPOCH_MAX,
    MODELS,
    OUTCOMES_MAX,
    PROPERTIES_MAX,
    Ack,
    Answer,
    Assignment,
    Gone,
    Hello,
    Message,
    OutcomeReport,
    Progress,
    Repository,
    Running,
    SlotReport,
    State,
    Sync,
    Target,
    WorkReport,
    read,
    write,
)
from protocol.outcomes import Abandoned, Reason, Result
from protocol.strict_json import MESSAGE_BYTES_MAX, dump
from protocol.topics import Kind

SHA = "0123456789abcdef" * 4

devices = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
words = st.from_regex(r"[\x21-\x7e]{1,64}", fullmatch=True)
lines = st.text(
    st.characters(exclude_categories=["Cs"], min_codepoint=0x20, exclude_characters="\x7f"), max_size=256
)
details = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=DETAIL_CHARACTERS_MAX
)
counts = st.integers(0, EPOCH_MAX)
shas = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
phases = st.sampled_from(WorkflowState)
slots = st.sampled_from(["A", "B"])


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The value or None, as an optional field has it."""
    return st.none() | strategy


outcomes = st.builds(
    OutcomeReport,
    epoch=counts,
    deployment=words,
    attempt=counts,
    result=st.sampled_from(Result),
    phase=phases,
    reason=st.sampled_from(Reason),
    abandoned=st.sampled_from(Abandoned),
    detail=details,
    already_there=st.booleans(),
    running_sha256=maybe(shas),
    reach_ms=maybe(counts),
    reach_limit_ms=maybe(counts),
)
states = st.builds(
    State,
    device=devices,
    instance=words,
    sequence=counts,
    digest=shas,
    epoch=maybe(counts),
    epoch_in_work=maybe(counts),
    floor=counts,
    properties=st.dictionaries(words, lines, max_size=3),
    tags=st.dictionaries(words, lines, max_size=3),
    slots=st.dictionaries(
        slots, st.builds(SlotReport, holds=st.just("trial"), update=maybe(lines), starts_left=maybe(counts))
    ),
    booted=maybe(slots),
    last_known_good=maybe(slots),
    running=maybe(st.builds(Running, update=lines, sha256=shas, release_counter=counts)),
    work=st.builds(
        WorkReport, state=phases, deployment=maybe(words), epoch=maybe(counts), stuck=maybe(lines)
    ),
    outcomes=st.lists(outcomes, max_size=3).map(tuple),
    outcomes_folded=counts,
    answer=maybe(st.builds(Answer, epoch=counts, answer=st.sampled_from(["canceled", "too_late", "held"]))),
    agent_version=lines,
    minimal=st.booleans(),
)
targets = st.builds(Target, update=lines, path=st.just("acme/app/1.0.json"), size_bytes=counts, sha256=shas)
repositories = st.builds(Repository, url=st.just("https://host/x"), query=st.just("?e=1&s=2"))
assignments = st.builds(
    Assignment,
    device=devices,
    epoch=counts,
    issued_ms=counts,
    lifetime_ms=counts,
    action=st.sampled_from(["install", "hold"]),
    deployment=words,
    attempt=counts,
    nonce=maybe(words),
    target=targets,
    repository=repositories,
    allow_downgrade=st.booleans(),
    offline_ok=st.booleans(),
    trial_starts=maybe(st.integers(1, 16)),
    snapshot_version=maybe(counts),
)
hellos = st.builds(
    Hello, device=devices, instance=words, connection=words, sequence=counts, digest=shas, epoch=maybe(counts),
    nonce=maybe(words), wants_addresses=st.booleans(), proof=maybe(st.text(max_size=50)), refused_count=counts,
)  # fmt: skip
acks = st.builds(
    Ack, device=devices, instance=words, sequence=counts, digest=maybe(shas), newest_epoch=counts, nonce=maybe(words),
    refused=maybe(lines), heartbeat_ms=maybe(counts), reconnect_spread_ms=maybe(counts),
)  # fmt: skip
progresses = st.builds(
    Progress,
    device=devices,
    deployment=words,
    epoch=counts,
    attempt=counts,
    phase=phases,
    bytes_done=counts,
    bytes_total=counts,
)
goners = st.builds(Gone, device=devices, connection=words)
syncs = st.builds(Sync, device=st.just("all"), window_ms=counts)

HELLO = {"schema": 1, "device": "d", "instance": "i", "connection": "c", "sequence": 0, "digest": SHA}
STATE = {"schema": 1, "device": "d", "instance": "i", "sequence": 0, "digest": SHA}
ASSIGNMENT = {"schema": 1, "device": "d", "epoch": 1, "issued_ms": 1, "lifetime_ms": 1, "action": "hold"}


@given(st.one_of(hellos, states, progresses, goners, assignments, acks, syncs))
def test_read_is_the_inverse_of_write(message: Message) -> None:
    """For every model, with every field that can be absent both ways."""
    assert read(type(message), write(message)) == message


@given(states)
def test_unknown_fields_are_ignored(state: State) -> None:
    """A newer writer may add fields, at the top and inside of parts (DESIGN.md section 4)."""
    fields = json.loads(write(state))
    fields["from_the_future"] = {"x": [1]}
    fields["work"]["from_the_future"] = True
    assert read(State, json.dumps(fields).encode()) == state


def test_every_kind_has_a_model() -> None:
    """A topic without a model could not be read."""
    assert set(MODELS) == set(Kind)


def test_the_largest_state_fits_into_one_message() -> None:
    """All caps reached at once, with the characters that take the most bytes, stay under the brokers' cap."""
    wide, detail = "\U0001f600" * 256, "\x01" * DETAIL_CHARACTERS_MAX
    outcome = OutcomeReport(
        epoch=EPOCH_MAX, deployment="\\" * 64, attempt=EPOCH_MAX, result=Result.FAILED, phase=WorkflowState.CONFIRMING,
        reason=Reason.CLOUD_UNREACHABLE, detail=detail, running_sha256=SHA, reach_ms=EPOCH_MAX,
        reach_limit_ms=EPOCH_MAX,
    )  # fmt: skip
    many = {f"{number:02}" + "\\" * 62: wide for number in range(PROPERTIES_MAX)}
    slot = SlotReport(holds="bad", update=wide, sha256=SHA, starts_left=EPOCH_MAX, reason=wide)
    state = State(
        device="d" * 64, instance="\\" * 64, sequence=EPOCH_MAX, digest=SHA, properties=many, tags=many,
        slots={"A": slot, "B": slot}, running=Running(update=wide, sha256=SHA), agent_version=wide,
        work=WorkReport(stuck=wide, deployment="\\" * 64), outcomes=(outcome,) * OUTCOMES_MAX,
    )  # fmt: skip
    data = write(state)
    assert len(data) <= MESSAGE_BYTES_MAX
    assert read(State, data) == state


@pytest.mark.parametrize(
    ("model", "base", "change", "reason"),
    [
        (Hello, HELLO, {"schema": 2}, "schema"),
        (Hello, HELLO, {"schema": 0}, "schema"),
        (Hello, HELLO, {"schema": "1"}, "schema"),
        (Hello, HELLO, {"schema": None}, "schema"),
        (Hello, HELLO, {"schema": 1.0}, "schema"),
        (Hello, HELLO, {"device": ""}, "fields"),
        (Hello, HELLO, {"device": "a/b"}, "fields"),
        (Hello, HELLO, {"device": "a\n"}, "fields"),
        (Hello, HELLO, {"device": "d" * 65}, "fields"),
        (Hello, HELLO, {"device": 7}, "fields"),
        (Hello, HELLO, {"sequence": -1}, "fields"),
        (Hello, HELLO, {"sequence": 1.0}, "fields"),
        (Hello, HELLO, {"sequence": "1"}, "fields"),
        (Hello, HELLO, {"sequence": True}, "fields"),
        (Hello, HELLO, {"sequence": EPOCH_MAX + 1}, "fields"),
        (Hello, HELLO, {"digest": SHA.upper()}, "fields"),
        (Hello, HELLO, {"digest": SHA + "\n"}, "fields"),
        (Hello, HELLO, {"nonce": ""}, "fields"),
        (Hello, HELLO, {"nonce": "a b"}, "fields"),
        (Hello, HELLO, {"nonce": "x" * 65}, "fields"),
        (Hello, HELLO, {"wants_addresses": 1}, "fields"),
        (Hello, HELLO, {"proof": "x" * 65_537}, "fields"),
        (State, STATE, {"slots": {"C": {"holds": "good"}}}, "fields"),
        (State, STATE, {"slots": {"A": {"holds": "fine"}}}, "fields"),
        (State, STATE, {"booted": "a"}, "fields"),
        (State, STATE, {"work": {"state": "sleeping"}}, "fields"),
        (State, STATE, {"properties": {"a b": "c"}}, "fields"),
        (State, STATE, {"properties": {"a": "line\nline"}}, "fields"),
        (State, STATE, {"properties": {"a": "\x1b[2J"}}, "fields"),
        (State, STATE, {"properties": {str(n): "" for n in range(PROPERTIES_MAX + 1)}}, "fields"),
        (State, STATE, {"outcomes": [{}]}, "fields"),
        (
            State,
            STATE,
            {"outcomes": [{"epoch": 1, "deployment": "d", "attempt": 1, "result": "won"}]},
            "fields",
        ),
        (
            State,
            STATE,
            {
                "outcomes": [
                    {"epoch": 1, "deployment": "d", "attempt": 1, "result": "failed", "detail": "x" * 501}
                ]
            },
            "fields",
        ),
        (
            State,
            STATE,
            {
                "outcomes": [{"epoch": 1, "deployment": "d", "attempt": 1, "result": "succeeded"}]
                * (OUTCOMES_MAX + 1)
            },
            "fields",
        ),
        (State, STATE, {"answer": {"epoch": 1, "answer": "maybe"}}, "fields"),
        (Assignment, ASSIGNMENT, {"action": "reboot"}, "fields"),
        (Assignment, ASSIGNMENT, {"trial_starts": 0}, "fields"),
        (Assignment, ASSIGNMENT, {"trial_starts": 17}, "fields"),
        (Assignment, ASSIGNMENT, {"repository": {"url": "file:///etc/passwd"}}, "fields"),
        (Assignment, ASSIGNMENT, {"repository": {"url": "http://h/ x"}}, "fields"),
        (
            Assignment,
            ASSIGNMENT,
            {"target": {"update": "u", "path": "/etc", "size_bytes": 1, "sha256": SHA}},
            "fields",
        ),
        (
            Assignment,
            ASSIGNMENT,
            {"target": {"update": "u", "path": "a", "size_bytes": 1, "sha256": "abc"}},
            "fields",
        ),
    ],
)
def test_what_is_not_of_the_model_is_refused(
    model: type[Message], base: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    """Each wrong value by itself is refused with its word, and the base without it is read."""
    assert read(model, json.dumps(base).encode()).device == "d"
    with pytest.raises(MessageRefused) as refused:
        read(model, json.dumps({**base, **change}).encode())
    assert refused.value.reason == reason


@pytest.mark.parametrize(("model", "base"), [(Hello, HELLO), (State, STATE), (Assignment, ASSIGNMENT)])
def test_every_required_field_is_required(model: type[Message], base: dict[str, Any]) -> None:
    """Leaving any one out is refused, and the sentence names it."""
    for name in base:
        fields = {key: value for key, value in base.items() if key != name}
        with pytest.raises(MessageRefused) as refused:
            read(model, json.dumps(fields).encode())
        assert name in str(refused.value)


def test_a_refusal_never_repeats_a_peers_control_characters() -> None:
    """Sentences end in logs and terminals; a hostile key is shown escaped."""
    with pytest.raises(MessageRefused) as refused:
        read(State, json.dumps({**STATE, "properties": {"\x1b[2J": "x"}}).encode())
    assert str(refused.value).isprintable()


@given(
    st.sampled_from(list(MODELS.values())),
    st.dictionaries(st.sampled_from([*HELLO, *ASSIGNMENT]), st.none() | counts | words),
)
def test_any_object_is_read_or_refused(model: type[Message], fields: dict[str, Any]) -> None:
    """No combination of fields raises anything but a refusal."""
    try:
        message = read(model, json.dumps({"schema": 1, **fields}).encode())
    except MessageRefused:
        return
    assert read(model, write(message)) == message


@pytest.mark.parametrize("missing", ["deployment", "attempt", "target", "repository"])
def test_an_install_says_everything_it_needs(missing: str) -> None:
    """An order to install without one of its parts is refused, so that no core meets half an order."""
    target = {"update": "a/b:1.0", "path": "a/b/1.0.json", "size_bytes": 1, "sha256": SHA}
    whole = {
        **ASSIGNMENT, "action": "install", "deployment": "d1", "attempt": 1, "target": target,
        "repository": {"url": "http://host/repo"},
    }  # fmt: skip
    assert read(Assignment, dump(whole)).deployment == "d1"
    with pytest.raises(MessageRefused, match="needs its deployment"):
        read(Assignment, dump({key: value for key, value in whole.items() if key != missing}))


@pytest.mark.parametrize(
    "path", ["../b.json", "a/../b.json", "a//b.json", "a/./b.json", "/a.json", "a/.hidden"]
)
def test_a_target_never_leaves_the_repository(path: str) -> None:
    """A path with `..`, an empty part or a hidden name is refused."""
    target = {"update": "a/b:1.0", "path": path, "size_bytes": 1, "sha256": SHA}
    with pytest.raises(MessageRefused, match="path"):
        read(Assignment, dump({**ASSIGNMENT, "target": target}))
