"""Where a broker is, and how to log in: read from a URL, or from what `lastgood cloud up` left behind.

It is not a connection. It keeps the rule that a password is never part of a sentence that is printed.
"""

from dataclasses import dataclass, field, replace
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from protocol.errors import MessageRefused, OperatorError
from protocol.strict_json import parse
from protocol.topics import DEFAULT_PREFIX

INSPECT_FILE: Final = "inspect.json"
INSPECT_BYTES_MAX: Final = 65_536  # the file has four short fields

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class Address:
    """One broker."""

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    prefix: str = DEFAULT_PREFIX
    ca_file: str | None = (
        None  # of the authority that signed its certificate; None: one that the system knows
    )
    key_pem: str | None = None  # of the cloud that runs this broker, to verify its assignments with

    @classmethod
    def of_url(cls, url: str, prefix: str = DEFAULT_PREFIX) -> Self:
        """Read `mqtt://user:password@host:port`, or `mqtts://` for TLS.

        Raises:
            OperatorError: the URL has another form.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme not in _PORTS or not host or parts.path not in {"", "/"} or port == 0:
            raise OperatorError(
                "That is no address of an MQTT broker: write it as mqtt://host:port or mqtts://host:port, "
                "with user:password@ before the host if the broker asks for them (percent-encoded)."
            )
        return cls(
            host=host,
            port=port or _PORTS[parts.scheme],
            tls=parts.scheme == "mqtts",
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            prefix=prefix,
        )

    @classmethod
    def of_inspect_file(cls, data: bytes, name: str) -> Self:
        """Read what `lastgood cloud up` writes: broker, user, password, prefix, key. `name` is for the error.

        Raises:
            OperatorError: it is not such a file.
        """
        try:
            fields = parse(data, bytes_max=INSPECT_BYTES_MAX)
            address = cls.of_url(fields["broker"], fields.get("prefix", DEFAULT_PREFIX))
            texts = (fields.get("user"), fields.get("password"), fields.get("key"), address.prefix)
            if not all(text is None or isinstance(text, str) for text in texts):
                raise TypeError
        except (MessageRefused, OperatorError, KeyError, TypeError, AttributeError) as error:
            raise OperatorError(
                f"{name} does not say where the broker is: start the cloud again with `lastgood cloud up`, "
                "or name the broker with --broker mqtt://host:port."
            ) from error
        user, password = fields.get("user") or address.user, fields.get("password") or address.password
        return replace(address, user=user, password=password, key_pem=fields.get("key"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"
