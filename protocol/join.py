"""The text that a new device is given: where its cloud is, who the device is, and whose orders it obeys.

It is not how the cloud makes tokens, nor how a device keeps them. `encode_join` and `decode_join` are inverses; the
text holds a secret, and is shown once.
"""

import base64
import binascii
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from protocol.errors import MessageRefused, OperatorError
from protocol.messages import DeviceId
from protocol.strict_json import dump, parse
from protocol.topics import DEFAULT_PREFIX

TEXT_CHARACTERS_MAX: Final = 16_384  # fits a command line and holds a key and its successors
KEYS_MAX: Final = 4

Token = Annotated[str, StringConstraints(min_length=8, max_length=256, pattern=r"^[\x21-\x7e]+$")]
BrokerUrl = Annotated[str, StringConstraints(max_length=512, pattern=r"^mqtts?://[\x21-\x7e]+$")]
Pem = Annotated[
    str, StringConstraints(max_length=4_096, pattern=r"^-----BEGIN PUBLIC KEY-----[\x0a\x0d\x20-\x7e]+$")
]
Prefix = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")
]


class Join(BaseModel):
    """What a device needs to know before its first connection."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    v: Literal[1] = 1
    broker: BrokerUrl
    device: DeviceId
    token: Token
    keys_pem: Annotated[tuple[Pem, ...], Field(min_length=1, max_length=KEYS_MAX, strict=False)]
    prefix: Prefix = DEFAULT_PREFIX


def broker_url(host: str, port: int) -> str:
    """Write where a broker without TLS is; an address of IPv6 stands in brackets (RFC 3986, section 3.2.2)."""
    return f"mqtt://[{host}]:{port}" if ":" in host else f"mqtt://{host}:{port}"


def encode_join(join: Join) -> str:
    """Write it as one word of letters, digits, dashes and underscores; the inverse of `decode_join`."""
    return base64.urlsafe_b64encode(dump(join.model_dump(mode="json"))).rstrip(b"=").decode("ascii")


def decode_join(text: str) -> Join:
    """Read the text that `lastgood device add` printed; the inverse of `encode_join`.

    Raises:
        OperatorError: it is damaged or cut short, or of a newer lastgood.
    """
    text = text.strip()
    try:
        if len(text) > TEXT_CHARACTERS_MAX:
            raise ValueError
        fields = parse(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, MessageRefused) as error:
        raise OperatorError(
            "The text behind --join is damaged or cut short; copy the whole line from `lastgood device add` again."
        ) from error
    if fields.get("v") != 1:
        raise OperatorError(
            "The text behind --join is of another version of lastgood; update the agent, then join again."
        )
    try:
        return Join.model_validate(fields)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"])
        raise OperatorError(
            f"The text behind --join has no valid {where!r}; make a new one with `lastgood device add`."
        ) from error
