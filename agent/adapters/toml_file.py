"""TOML files: read, written, and taken apart key by key with errors that name the key.

It knows no key by name (`config.py` does). It keeps the rule that a key nobody takes is refused, so that a misspelt
limit never stands silently at its default.
"""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from protocol.errors import OperatorError
from protocol.messages import PROPERTIES_MAX

CONFIG_BYTES_MAX: Final = 262_144
WORD_CHARACTERS_MAX: Final = 64  # of the name of a property or tag
LINE_CHARACTERS_MAX: Final = 256  # of its value


def read_toml(path: Path) -> dict[str, Any]:
    """Return the file's tables.

    Raises:
        OperatorError: it cannot be read, or is no TOML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise OperatorError(f"{path} is larger than {CONFIG_BYTES_MAX} bytes, and so no configuration.")
        return tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise OperatorError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise OperatorError(f"The configuration {path} is not TOML: {error}.") from error


def dump_toml(fields: Mapping[str, Any]) -> str:
    """Write tables as TOML; the inverse of `tomllib.loads` for what a configuration can hold."""
    lines: list[str] = []
    _write_table(lines, fields, ())
    return "\n".join(lines).lstrip("\n") + "\n"


def _write_table(lines: list[str], fields: Mapping[str, Any], way: tuple[str, ...]) -> None:
    later: list[tuple[str, Any]] = []
    for key, value in fields.items():
        if isinstance(value, Mapping) or (
            isinstance(value, list) and value and isinstance(value[0], Mapping)
        ):
            later.append((key, value))
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in later:
        name = ".".join(_key(each) for each in (*way, key))
        for each in [value] if isinstance(value, Mapping) else value:
            lines.append(f"\n[{name}]" if isinstance(value, Mapping) else f"\n[[{name}]]")
            _write_table(lines, each, (*way, key))


def _key(text: str) -> str:
    plain = text and all(char.isascii() and (char.isalnum() or char in "-_") for char in text)
    return text if plain else _value(text)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    # A JSON text is a TOML text too, but for the one character that TOML wants escaped and JSON does not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


class Table:
    """A table that knows its name and what was taken from it."""

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self._left = dict(fields)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._left.pop(key, default)
        if value is None:
            raise OperatorError(f"'{self.name}{key}' is missing in the configuration.")
        if not isinstance(value, str) or "\0" in value:
            raise self._wrong(key, value, "a text")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise self._wrong(key, value, "one of " + ", ".join(choices))
        return value

    def number(self, key: str, default: float | None, *, least: float, most: float) -> float:
        value = self._left.pop(key, default)
        if value is None:
            raise OperatorError(f"'{self.name}{key}' is missing in the configuration.")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or not least <= value <= most
        ):
            raise self._wrong(key, value, f"a number from {least:g} to {most:g}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._left.pop(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._left.pop(key, [])
        if not isinstance(value, list) or not all(
            isinstance(each, str) and "\0" not in each for each in value
        ):
            raise self._wrong(key, value, "a list of texts")
        return tuple(value)

    def words(self, key: str) -> dict[str, str]:
        value = self._left.pop(key, {})
        if not isinstance(value, Mapping) or len(value) > PROPERTIES_MAX:
            raise self._wrong(key, value, f"a table of at most {PROPERTIES_MAX} texts")
        for name, text in value.items():
            if not (0 < len(name) <= WORD_CHARACTERS_MAX and all("!" <= char <= "~" for char in name)):
                raise OperatorError(
                    f"'{self.name}{key}' holds the name {name!r}: use up to 64 ASCII characters without spaces."
                )
            if (
                not isinstance(text, str)
                or len(text) > LINE_CHARACTERS_MAX
                or any(char < " " or char == "\x7f" for char in text)
            ):
                raise self._wrong(f"{key}.{name}", text, "one line of at most 256 characters")
        return dict(value)

    def table(self, key: str) -> "Table":
        value = self._left.pop(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a table")
        return Table(f"{self.name}{key}.", value)

    def tables(self, key: str, most: int) -> list["Table"]:
        value = self._left.pop(key, [])
        if (
            not isinstance(value, list)
            or len(value) > most
            or not all(isinstance(each, Mapping) for each in value)
        ):
            raise self._wrong(key, value, f"a list of at most {most} tables ([[{key}]])")
        return [Table(f"{self.name}{key}[{index}].", each) for index, each in enumerate(value)]

    def finish(self) -> None:
        if self._left:
            key = min(self._left)
            raise OperatorError(
                f"'{self.name}{key}' is not a key of the agent's configuration; is it misspelt?"
            )

    def _wrong(self, key: str, value: object, wanted: str) -> OperatorError:
        return OperatorError(f"'{self.name}{key}' is {value!r} in the configuration, and has to be {wanted}.")
