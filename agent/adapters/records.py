"""The agent's record on the disk: one file, replaced whole (R1).

It does not know what the fields mean; `core/record.py` owns the format (R26).
"""

from pathlib import Path

from agent.adapters import durable
from agent.core.model import Record
from agent.core.record import RECORD_BYTES_MAX, decode, encode
from protocol.errors import DeviceError, LastgoodError


class RecordFile:
    """The port `Records` on one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Record | None:
        """Return the record, or None when there has never been one.

        Raises:
            DeviceError: it is there and cannot be read.
        """
        try:
            with open(self._path, "rb") as file:
                data = file.read(RECORD_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DeviceError(
                f"The agent's record {self._path} cannot be read ({error.strerror})."
            ) from error
        if len(data) > RECORD_BYTES_MAX:
            raise DeviceError(f"The agent's record {self._path} is too large to be one.")
        try:
            return decode(data)
        except (LastgoodError, ValueError) as error:
            raise DeviceError(f"{str(error).rstrip('.')}: {self._path}.") from error

    def save(self, record: Record) -> None:
        """Replace the record.

        Raises:
            DeviceError: the disk refused; the old record stands.
        """
        try:
            durable.replace_file(self._path, encode(record))
        except OSError as error:
            raise durable.device_failure(error, "writing the agent's record") from error
