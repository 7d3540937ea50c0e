"""What a transaction knows of one table: rows as the database has them, and rows put and not yet written.

It runs no SQL. It keeps the rule that what is put can be taken back to a mark, without reading anything again.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
R = TypeVar("R")

Undo = Callable[[], None]


class Overlay(Generic[K, R]):
    """One table's rows by key; `None` among the stored says that the database has no such row."""

    def __init__(self) -> None:
        self.stored: dict[K, R | None] = {}
        self.staged: dict[K, R] = {}

    def knows(self, key: K) -> bool:
        """Return whether `get` can answer without asking the database."""
        return key in self.staged or key in self.stored

    def get(self, key: K) -> R | None:
        """Return the row as the transaction sees it; only for keys that it `knows`."""
        row = self.staged.get(key)
        return self.stored[key] if row is None else row

    def put(self, key: K, row: R, journal: list[Undo] | None) -> None:
        """Stage a row; with a journal, write down there how to take it back."""
        if journal is not None:
            journal.append(_restore(self.staged, key))
        self.staged[key] = row

    def learn(self, key: K, row: R | None) -> R | None:
        """Take note of what the database has, and return the row as the transaction sees it."""
        return self.staged.get(key) or self.stored.setdefault(key, row)

    def changes(self) -> Iterator[tuple[R | None, R]]:
        """Yield what has to be written: (row as the database has it or None, row as it shall be)."""
        stored = self.stored
        for key, row in self.staged.items():
            old = stored.get(key)
            if old is not row:
                yield old, row

    def written(self, journal: list[Undo] | None) -> None:
        """Take note that everything staged is in the database now."""
        if journal is not None:
            journal.append(self._stage_again(self.staged))
        self.stored.update(self.staged)
        self.staged = {}

    def forget(self, keys: Iterable[K]) -> None:
        """Read these rows again when they are next asked for."""
        for key in list(keys):
            self.stored.pop(key, None)

    def _stage_again(self, staged: dict[K, R]) -> Undo:
        def undo() -> None:
            self.staged = staged

        return undo


_MISSING = object()


def _restore(staged: dict[K, R], key: K) -> Undo:
    before = staged.get(key, _MISSING)

    def undo() -> None:
        if before is _MISSING:
            staged.pop(key, None)
        else:
            staged[key] = before  # type: ignore[assignment]

    return undo
