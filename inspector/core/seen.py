"""One message as the inspector saw it: decoded as far as it goes, with every complaint about it.

It is not a judge of what a message means for a device or a deployment. It keeps the rule that nothing which
arrives can raise here: what does not parse becomes a `Seen` with complaints, and an excerpt of its bytes.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from inspector.core.text import escape
from protocol.envelope import ASSIGNMENT_TYPE, TrustedKeys
from protocol.errors import MessageRefused, SignatureRefused
from protocol.messages import MODELS, Message, read
from protocol.strict_json import dump, parse
from protocol.topics import EVERYONE, Kind, Topics

EXCERPT_BYTES_MAX: Final = 96  # of a payload that cannot be decoded: enough to recognise it by
DEPTH_MAX: Final = 32  # of nested JSON: real messages need five, and writers of JSON stop at some hundreds
LINE_BYTES_MAX: Final = (
    2_097_152  # of a recorded line: a message at the cap, its every byte escaped as \uXXXX
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES_END_MS: Final = 253_370_764_800_000  # the year 9999, the last that every time zone can show


class Trust(StrEnum):
    """What is known of an assignment's signature."""

    UNVERIFIED = "unverified"  # no key was given to check it with
    VERIFIED = "verified"
    BAD_SIGNATURE = "bad signature"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as the broker delivered it; `at_ms` is this machine's clock, in UTC milliseconds."""

    at_ms: int
    topic: str
    payload: bytes
    qos: int = 0
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that is wrong with a message: a short fixed word, and a sentence."""

    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A message, decoded: `payload` is the JSON as it was sent (an envelope's inside), `message` its model."""

    at_ms: int
    topic: str
    kind: Kind | None
    device: str | None
    size_bytes: int
    qos: int = 0
    retained: bool = False
    payload: Mapping[str, Any] | None = None
    message: Message | None = None
    trust: Trust | None = None
    complaints: tuple[Complaint, ...] = ()
    excerpt: str = ""

    @property
    def refused(self) -> bool:
        """Whether something is wrong with it, so that a device or a cloud would not act on it."""
        return bool(self.complaints)


def decode(arrival: Arrival, topics: Topics, keys: TrustedKeys | None = None) -> Seen:
    """Return what `arrival` says, assignments verified when `keys` are given; never raises for its content."""
    complaints: list[Complaint] = []
    kind, device = None, None
    try:
        topic = topics.parse(arrival.topic)
        kind, device = topic.kind, topic.device
    except MessageRefused as error:
        complaints.append(Complaint(error.reason, str(error)))
    if arrival.retained:
        complaints.append(
            Complaint("retained", "It was retained by the broker, and lastgood retains nothing.")
        )

    inside, trust = _opened(arrival.payload, kind, keys, complaints)
    payload = _payload_of(inside, complaints) if inside is not None else None
    message = (
        _message_of(kind, device, inside, complaints) if inside is not None and payload is not None else None
    )
    return Seen(
        at_ms=arrival.at_ms,
        topic=arrival.topic,
        kind=kind,
        device=device,
        size_bytes=len(arrival.payload),
        qos=arrival.qos,
        retained=arrival.retained,
        payload=payload,
        message=message,
        trust=trust,
        complaints=tuple(complaints),
        excerpt=_excerpt(arrival.payload) if payload is None else "",
    )


def to_json(seen: Seen) -> dict[str, Any]:
    """Return `seen` as a JSON object, one line of `tail --json`; `from_json` is its inverse."""
    instant = datetime.fromtimestamp(seen.at_ms // 1000, UTC).replace(microsecond=seen.at_ms % 1000 * 1000)
    return {
        "time": instant.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "topic": seen.topic,
        "kind": seen.kind.value if seen.kind else None,
        "device": seen.device,
        "size": seen.size_bytes,
        "qos": seen.qos,
        "retained": seen.retained,
        "trust": seen.trust.value if seen.trust else None,
        "payload": seen.payload,
        "excerpt": seen.excerpt,
        "errors": [
            {"reason": complaint.reason, "sentence": complaint.sentence} for complaint in seen.complaints
        ],
    }


def from_json(line: bytes) -> Seen:
    """Read one line that `tail --json` wrote; the inverse of `to_json`.

    Raises:
        MessageRefused: the line is not such an object.
    """
    fields = parse(line, bytes_max=LINE_BYTES_MAX)
    try:
        since = datetime.fromisoformat(fields["time"].replace("Z", "+00:00")) - _EPOCH
        at_ms = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
        kind = Kind(fields["kind"]) if fields["kind"] else None
        payload = dict(fields["payload"]) if fields["payload"] is not None else None
        if not 0 <= at_ms < _TIMES_END_MS or _deeper_than(payload, DEPTH_MAX):
            raise ValueError("outside of what the inspector writes")
        return Seen(
            at_ms=at_ms,
            topic=str(fields["topic"]),
            kind=kind,
            device=str(fields["device"]) if fields["device"] else None,
            size_bytes=int(fields["size"]),
            qos=int(fields.get("qos", 0)),
            retained=bool(fields.get("retained", False)),
            payload=payload,
            message=_message_of(kind, None, dump(payload), []) if payload is not None else None,
            trust=Trust(fields["trust"]) if fields.get("trust") else None,
            complaints=tuple(
                Complaint(str(each["reason"]), str(each["sentence"])) for each in fields["errors"]
            ),
            excerpt=str(fields.get("excerpt", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MessageRefused("line", "It is not a line that `lastgood mqtt tail --json` wrote.") from error


def _opened(
    data: bytes, kind: Kind | None, keys: TrustedKeys | None, complaints: list[Complaint]
) -> tuple[bytes | None, Trust | None]:
    """Return the JSON of a message: an assignment's out of its envelope, any other as it is."""
    if kind is not Kind.DESIRED:
        return data, None
    try:
        inside = _inside_of_envelope(data)
        trust = _trust_of(data, keys)
    except MessageRefused as error:
        complaints.append(Complaint(error.reason, str(error)))
        return None, None
    if trust is Trust.BAD_SIGNATURE:
        complaints.append(
            Complaint("signature", "None of the keys given has signed it; a device refuses it.")
        )
    return inside, trust


def _payload_of(data: bytes, complaints: list[Complaint]) -> dict[str, Any] | None:
    try:
        payload = parse(data)
    except MessageRefused as error:
        complaints.append(Complaint(error.reason, str(error)))
        return None
    if data.count(b"{") + data.count(b"[") > DEPTH_MAX and _deeper_than(payload, DEPTH_MAX):
        complaints.append(Complaint("too_deep", f"It is nested over {DEPTH_MAX} deep."))
        return None
    return payload


def _deeper_than(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(part, levels - 1) for part in parts)


def _inside_of_envelope(data: bytes) -> bytes:
    """Return an envelope's payload without any trust in it, to be looked at and never obeyed."""
    fields = parse(data)
    signatures = fields.get("signatures")
    if fields.get("payloadType") != ASSIGNMENT_TYPE or not isinstance(signatures, list) or not signatures:
        raise MessageRefused("envelope", "It is not a signed envelope with an assignment inside.")
    try:
        return base64.b64decode(fields["payload"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise MessageRefused("envelope", "The envelope's payload is not base64.") from error


def _trust_of(data: bytes, keys: TrustedKeys | None) -> Trust:
    if keys is None:
        return Trust.UNVERIFIED
    try:
        keys.open_envelope(data)
    except SignatureRefused:
        return Trust.BAD_SIGNATURE
    return Trust.VERIFIED


def _message_of(
    kind: Kind | None, device: str | None, data: bytes, complaints: list[Complaint]
) -> Message | None:
    if kind is None:
        return None
    try:
        message = read(MODELS[kind], data)
    except MessageRefused as error:
        complaints.append(Complaint(error.reason, str(error)))
        return None
    if device is not None and message.device != device:
        whose = "everyone" if device == EVERYONE else device
        complaints.append(Complaint("device", f"It names {message.device}, and its topic is of {whose}."))
    return message


def _excerpt(data: bytes) -> str:
    shown = escape(data[:EXCERPT_BYTES_MAX].decode("utf-8", "backslashreplace"))
    return shown + "…" if len(data) > EXCERPT_BYTES_MAX else shown
