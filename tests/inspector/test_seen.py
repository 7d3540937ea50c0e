"""Decoding: every message becomes one `Seen`, and nothing that arrives can raise."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.core.seen import DEPTH_MAX, Arrival, Seen, Trust, decode, from_json, to_json
from protocol.envelope import TrustedKeys
from protocol.errors import MessageRefused
from protocol.messages import write
from protocol.topics import Kind, Topics
from tests.inspector.conversation import (
    ACK,
    HELLO,
    KEY,
    MESSAGES,
    ORDER,
    OTHER_KEY,
    START_MS,
    arrival,
    conversation,
)

TOPICS = Topics()
NAMES = [TOPICS.build(kind, message.device) for kind, message in MESSAGES]


@pytest.mark.parametrize("number", range(len(MESSAGES)))
def test_each_kind_is_decoded_to_what_was_sent(number: int) -> None:
    """Kind, device, size and the model itself, without a complaint."""
    kind, message = MESSAGES[number]
    seen = decode(conversation()[number], TOPICS)
    assert (seen.kind, seen.device, seen.message) == (kind, message.device, message)
    assert not seen.refused
    assert seen.size_bytes == len(conversation()[number].payload)


@pytest.mark.parametrize(
    ("keys", "trust", "refused"),
    [
        (None, Trust.UNVERIFIED, False),
        (TrustedKeys([KEY.public_pem]), Trust.VERIFIED, False),
        (TrustedKeys([OTHER_KEY.public_pem]), Trust.BAD_SIGNATURE, True),
    ],
)
def test_an_assignment_is_shown_and_its_trust_is_said(
    keys: TrustedKeys | None, trust: Trust, refused: bool
) -> None:
    """Without a key it is opened and called unverified; a bad signature is shown, and what it signs too."""
    seen = decode(arrival(Kind.DESIRED, ORDER), TOPICS, keys)
    assert (seen.trust, seen.refused, seen.message) == (trust, refused, ORDER)


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (Arrival(0, NAMES[0], b""), "not_json"),
        (Arrival(0, NAMES[0], b"\x00\xff"), "not_json"),
        (Arrival(0, NAMES[0], b'{"schema":2}'), "schema"),
        (Arrival(0, NAMES[0], b'{"schema":1}'), "fields"),
        (Arrival(0, NAMES[0], b" " * 300_000), "too_large"),
        (Arrival(0, NAMES[0], b'{"schema":1,"x":' + b"[" * 60 + b"]" * 60 + b"}"), "too_deep"),
        (Arrival(0, NAMES[0], b'{"x":' + b"[" * 100_000), "not_json"),
        (Arrival(0, NAMES[1], write(ORDER)), "envelope"),
        (Arrival(0, NAMES[1], b'{"payload":1,"payloadType":"x","signatures":[]}'), "envelope"),
        (Arrival(0, "lg/v1/up/x/y/z", b"{}"), "topic"),
        (Arrival(0, "other", write(HELLO)), "topic"),
        (arrival(Kind.HELLO, HELLO, device="pi-18"), "device"),
        (Arrival(0, NAMES[2], write(ACK), retained=True), "retained"),
    ],
)
def test_what_a_side_would_refuse_is_said_with_its_reason(got: Arrival, reason: str) -> None:
    """Broken JSON, wrong fields, wrong device, wrong topic, and what nobody should have retained."""
    seen = decode(got, TOPICS)
    assert seen.complaints[0].reason == reason
    assert seen.complaints[0].sentence.isprintable()


def test_a_bad_envelope_with_a_key_is_a_complaint_too() -> None:
    """The library's checks of an envelope's form are met as well as our own."""
    fields = json.loads(KEY.sign(write(ORDER)))
    fields["signatures"] *= 2
    seen = decode(Arrival(0, NAMES[1], json.dumps(fields).encode()), TOPICS, TrustedKeys([KEY.public_pem]))
    assert seen.complaints[0].reason == "envelope"
    assert seen.payload is None


@given(st.sampled_from([*NAMES, "x", ""]) | st.text(max_size=40), st.binary(max_size=300))
def test_nothing_that_arrives_can_raise(topic: str, payload: bytes) -> None:
    """Any topic with any bytes becomes a `Seen`, and that can be written as a line and read back."""
    seen = decode(Arrival(START_MS, topic, payload), TOPICS)
    assert read_back(seen) == seen


@pytest.mark.parametrize("got", conversation())
def test_a_recorded_line_reads_back_as_it_was(got: Arrival) -> None:
    """`from_json` is the inverse of `to_json`, so that `seq --from` shows what `tail` saw."""
    seen = decode(got, TOPICS)
    assert read_back(seen) == seen


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"hello",
        b'{"time":"yesterday"}',
        b'{"time":"9999-12-31T23:59:59.999Z","topic":"t","kind":null,"device":null,"size":0,"payload":null,"errors":[]}',
        b'{"time":"2026-01-01T00:00:00","topic":"t","kind":null,"device":null,"size":0,"payload":null,"errors":[]}',
        b'{"time":"2026-01-01T00:00:00Z","topic":"t","kind":"song","device":null,"size":0,"payload":null,"errors":[]}',
        b'{"time":"2026-01-01T00:00:00Z","topic":"t","kind":null,"device":null,"size":0,"payload":[1],"errors":[]}',
        b'{"time":"2026-01-01T00:00:00Z","topic":"t","kind":null,"device":null,"size":0,"payload":null,"errors":[1]}',
    ],
)
def test_a_line_that_tail_did_not_write_is_refused(line: bytes) -> None:
    """A recording may have been edited: a refusal, never a traceback."""
    with pytest.raises(MessageRefused):
        from_json(line)


def test_the_deepest_real_message_is_far_below_the_cap() -> None:
    """The cap on nesting must never hide a real message."""
    deepest = max(write(message).count(b"{") for _, message in MESSAGES)
    assert deepest < DEPTH_MAX


def read_back(seen: Seen) -> Seen:
    """Write as `tail --json` does, and read as `seq --from` does."""
    return from_json(json.dumps(to_json(seen)).encode())
