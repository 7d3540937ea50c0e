"""The errors of lastgood, one family for each party that can be at fault.

    LastgoodError
    ├── PeerError        what came over the wire or the network is not what the contract says
    │   ├── MessageRefused      a message that does not parse, is too large, or is for another device
    │   └── SignatureRefused    an envelope without a valid signature of a key we trust
    ├── OperatorError    what a person asked for cannot be done, and what to do instead
    ├── DeviceError      the device's own disk, slots or application
    └── ServiceError     our own service (broker, database, files) is not as it should be

It is not a place for behaviour: an error carries its sentence, and data as attributes.
The sentence says what is wrong and what to do next, for the command line prints it as it stands.
"""


class LastgoodError(Exception):
    """The root of every error that lastgood raises on purpose."""


class PeerError(LastgoodError):
    """The other side of a connection broke the contract."""


class MessageRefused(PeerError):
    """A message that must not be acted on; `reason` is a short fixed word for counters."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class SignatureRefused(PeerError):
    """An envelope that no trusted key has signed."""


class OperatorError(LastgoodError):
    """A request that cannot be carried out as it was made."""


class DeviceError(LastgoodError):
    """The device's disk, slots or application failed us."""


class ServiceError(LastgoodError):
    """A part of the service itself (broker, database, file store) failed."""
