"""Names of devices, groups and updates, and the order of versions.

It is not about what an update contains: an update's true identity is the sha256 of its manifest (RULES.md,
definitions), and `provider/name:version` is what people call it.
"""

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Final, Self

from protocol.errors import OperatorError

DEVICE_ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DEFAULT_GROUP: Final = "$default"
RESERVED_DEVICE_IDS: Final = frozenset({"all"})  # `down/all/sync` is everybody's topic
SHA256_HEX_PATTERN: Final = r"^[0-9a-f]{64}$"

_NAME_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
_VERSION: Final = re.compile(r"[0-9]{1,10}(\.[0-9]{1,10}){0,3}")
_VERSION_PART_MAX: Final = 2_147_483_647  # Azure Device Update's limit for one number


def check_device_id(text: str) -> str:
    """Return `text` when it is a device id.

    Raises:
        OperatorError: it is not, and the sentence says which characters are.
    """
    if not re.fullmatch(DEVICE_ID_PATTERN[1:-1], text) or text in RESERVED_DEVICE_IDS:
        raise OperatorError(
            f"{text!r} is not a device id: use 1 to 64 letters, digits, dots, dashes and underscores, "
            f"beginning with a letter or digit, and other than {', '.join(map(repr, sorted(RESERVED_DEVICE_IDS)))}."
        )
    return text


def check_group(text: str) -> str:
    """Return `text` when it can name a group.

    Raises:
        OperatorError: it cannot.
    """
    if text != DEFAULT_GROUP and not re.fullmatch(DEVICE_ID_PATTERN[1:-1], text):
        raise OperatorError(
            f"{text!r} cannot name a group: use 1 to 64 letters, digits, dots, dashes and underscores, "
            f"or {DEFAULT_GROUP}."
        )
    return text


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """One to four numbers with dots between; missing ones count as zero when two are compared."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a version such as `1.2` or `2026.11.0.3`.

        Raises:
            OperatorError: it is not one to four numbers below 2³¹.
        """
        if not _VERSION.fullmatch(text) or any(int(part) > _VERSION_PART_MAX for part in text.split(".")):
            raise OperatorError(
                f"{text!r} is not a version: use one to four numbers with dots between, such as 1.2.0."
            )
        return cls(text)

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """The four numbers that decide the order."""
        parts = [int(part) for part in self.text.split(".")]
        first, second, third, fourth = parts + [0] * (4 - len(parts))
        return first, second, third, fourth

    def __lt__(self, other: "Version") -> bool:
        return self.numbers < other.numbers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self.numbers == other.numbers

    def __hash__(self) -> int:
        return hash(self.numbers)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class UpdateId:
    """What people call an update: `provider/name:version`."""

    provider: str
    name: str
    version: Version

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `provider/name:version`; the inverse of `str()`.

        Raises:
            OperatorError: the text has another form.
        """
        provider, slash, rest = text.partition("/")
        name, colon, version = rest.rpartition(":")
        if not slash or not colon:
            raise OperatorError(f"{text!r} is not an update id: write it as provider/name:version.")
        return cls.of(provider, name, version)

    @classmethod
    def of(cls, provider: str, name: str, version: str) -> Self:
        """Build an update id from its three parts.

        Raises:
            OperatorError: a part has characters that an update id cannot hold.
        """
        for what, part in (("provider", provider), ("name", name)):
            if not _NAME_PART.fullmatch(part):
                raise OperatorError(
                    f"{part!r} cannot be an update's {what}: use 1 to 64 letters, digits, dots and dashes, "
                    "beginning with a letter or digit."
                )
        return cls(provider, name, Version.parse(version))

    @property
    def manifest_path(self) -> str:
        """Where the repository holds the manifest, relative to its address."""
        return f"{self.provider}/{self.name}/{self.version}.json"

    def __str__(self) -> str:
        return f"{self.provider}/{self.name}:{self.version}"
