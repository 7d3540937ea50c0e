"""Which messages a reader asked for, and the narrowest topic filters that bring them.

It is not the decoder. It keeps the rule that `keeps` alone decides: the filters only spare the broker work.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from inspector.core.seen import Seen
from protocol.errors import OperatorError
from protocol.topics import EVERYONE, RULES, Kind

FILTERS_MAX: Final = 64  # beyond it one wide filter is cheaper for a broker than many narrow ones

_WILD: Final = frozenset("*?[")
_IN_GLOBS: Final = re.compile(r"[A-Za-z0-9._*?\[\]!-]+")


def check_glob(text: str) -> str:
    """Return `text` when it can match a device id.

    Raises:
        OperatorError: it holds a character that no device id has.
    """
    if not _IN_GLOBS.fullmatch(text):
        raise OperatorError(
            f"{text!r} matches no device: write an id, or a pattern of its characters with * ? [ ], such as 'pi-*'."
        )
    return text


@dataclass(frozen=True, slots=True)
class Pick:
    """Device globs and kinds; an empty tuple means all of them."""

    devices: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ()

    def keeps(self, seen: Seen) -> bool:
        """Return whether `seen` was asked for; what goes to everyone goes to each device asked for."""
        if self.kinds and seen.kind not in self.kinds:
            return False
        if not self.devices or seen.device == EVERYONE:
            return True
        return seen.device is not None and any(fnmatchcase(seen.device, glob) for glob in self.devices)

    def filters(self, prefix: str) -> tuple[str, ...]:
        """Return the MQTT filters to subscribe to; no two of them overlap."""
        if not self.devices and not self.kinds:
            return (f"{prefix}/#",)
        wild = not self.devices or any(_WILD & set(glob) for glob in self.devices)
        devices = ("+",) if wild else (*dict.fromkeys(self.devices), EVERYONE)
        kinds = self.kinds or tuple(Kind)
        wanted = [
            f"{prefix}/{RULES[kind].direction}/{device}/{kind}"
            for kind in dict.fromkeys(kinds)
            for device in devices
            if device == "+" or (kind is Kind.SYNC) == (device == EVERYONE)
        ]
        return tuple(wanted) if 0 < len(wanted) <= FILTERS_MAX else (f"{prefix}/#",)
