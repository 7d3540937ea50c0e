"""The slot backend `directory`: two folders and a symlink, switched by one rename. No root needed.

    ROOT/A, ROOT/B        the slots            ROOT/current → A     what boots
    ROOT/slots.json       what each slot holds, and the last known good
    ROOT/A.manifest, ROOT/A.seal               the update in A, and the digest of its folder when it was sealed

It decides nothing about slots: every transition is one of `core/slots.py`. It keeps the order in which their halves
become durable: what a slot holds is written first, then the one rename switches, and is read back. Which slot is
booted is always where the symlink points; one that points elsewhere makes the slots *unknown*, never bad.
"""

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from agent.adapters import durable, tree
from agent.core import slots as rules
from agent.core.model import SLOTS, Holds, Slot, SlotName, SlotTable
from agent.core.record import decode_slots, encode_slots
from agent.ports import Stop
from protocol.errors import DeviceError, LastgoodError, OperatorError
from protocol.manifest import MANIFEST_BYTES_MAX, read_manifest

TABLE_BYTES_MAX: Final = 65_536  # two slots; a longer file is not ours
_HALF: Final = frozenset({Holds.WRITING, Holds.INVALID})
_SEALED: Final = frozenset({Holds.SEALED, Holds.TRIAL, Holds.GOOD, Holds.UNKNOWN})


class DirectorySlots:
    """The port `Slots` on two folders. `recover` has to be called first; it also lays out a new device."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()  # the loop and the worker both ask; writes never interleave

    def recover(self) -> SlotTable:
        """Bring what a power loss left half-way to a legal state, and return it.

        Raises:
            DeviceError: the disk refused.
        """
        with self._writing("recovering the slots"):
            self._lay_out()
            link, known = self._link(), self._table()
            if known is None or (link is None and not self._is_lost()):
                return self._unclear(known, link)
            if link is None:  # the first start ended before the link was made, or somebody removed it
                link = known.last_known_good
                durable.replace_symlink(self._current, link)
            found = _booted(known, link)
            legal = rules.recover(found)
            if legal.slots != found.slots:
                self._save(legal)
            if legal.booted != found.booted:
                self._switch(legal.booted)
            spare = legal.spare
            if spare != legal.last_known_good and legal.slots[spare].holds in _HALF:
                # What a power loss left half-way is worth nothing, and may fill the disk that the record needs.
                with contextlib.suppress(OSError):
                    tree.empty(self.path(spare))
            return self.probe()

    def probe(self) -> SlotTable:
        """Return what is, without changing it.

        Raises:
            DeviceError: the disk refused.
        """
        with self._writing("reading the slots"):
            link, known = self._link(), self._table()
            if known is None or link is None:
                return self._unclear(known, link, change=False)
            return _booted(known, link)

    def begin(self, slot: SlotName, manifest: bytes) -> Path:
        """Durably invalidate the slot, empty it, and return the folder that steps write into.

        Raises:
            DeviceError: the slot is booted or last known good, or it is unknown what boots.
            WorkFailed: `no_space` or `disk`.
        """
        read = read_manifest(manifest)
        with self._writing(f"emptying slot {slot}"):
            table = rules.begin(self._clear(), slot, str(read.update), read.sha256, read.release_counter)
            self._save(table)
            durable.remove_file(self._beside(slot, "seal"))
        # From here on nobody trusts the slot, and the other slot's business need not wait.
        with self._writing(f"emptying slot {slot}", lock=False):
            tree.empty(self.path(slot))
            durable.replace_file(self._beside(slot, "manifest"), manifest, mode=0o644)
            return self.path(slot)

    def seal(self, slot: SlotName) -> None:
        """Make what was written durable and read-only, remember its digest, and mark the slot sealed.

        Raises:
            DeviceError: the slot is not being written.
            WorkFailed: `no_space` or `disk`.
        """
        with self._writing(f"sealing slot {slot}", lock=False):
            table = self.probe()
            rules.seal(table, slot)
            if table.slots[slot].holds is Holds.SEALED:
                return
            tree.protect(self.path(slot))
            digest = tree.digest(self.path(slot))
            durable.sync_file_system(self.path(slot))
        with self._writing(f"sealing slot {slot}"):
            sealed = rules.seal(self._clear(), slot)  # asked anew: it may have been invalidated meanwhile
            seal = {"manifest": sealed.slots[slot].sha256, "tree": digest, "version": 1}
            durable.replace_file(self._beside(slot, "seal"), json.dumps(seal).encode(), mode=0o644)
            self._save(sealed)

    def rehash(self, slot: SlotName, *, stop: Stop = lambda: False) -> bool:
        """Return whether a slot still holds exactly what was sealed, its set of members included (R25).

        Raises:
            WorkFailed: the disk refused to read, which says nothing about the bytes.
            Stopped: `stop` said so.
        """
        with self._writing(f"checking slot {slot}", lock=False):
            held = self.probe().slots[slot]
            if held.holds not in _SEALED or held.sha256 is None:
                return False
            seal = self._seal(slot)
            manifest = _read(self._beside(slot, "manifest"), MANIFEST_BYTES_MAX)
            if (
                manifest is None
                or sha256(manifest).hexdigest() != held.sha256
                or seal.get("manifest") != held.sha256
            ):
                return False
            return self.path(slot).is_dir() and seal.get("tree") == tree.digest(self.path(slot), stop=stop)

    def activate(self, slot: SlotName, starts: int) -> None:
        """Put the slot in trial with so many starts, and make it the one that boots; the rename is the atomic step.

        Raises:
            DeviceError: the slot may not be tried, or what boots now is not what was asked.
        """
        with self._writing(f"switching to slot {slot}"):
            table = self._clear()
            marked = rules.mark_trial(table, slot, starts)
            if marked != table:
                self._save(marked)
            self._switch(rules.boot(marked, slot).booted)

    def count_start(self, slot: SlotName) -> bool:
        """Take one of the trial's starts, durably; False when none is left. Starts of a good slot are not counted.

        Raises:
            DeviceError: the disk refused; nothing may be started then.
        """
        with self._writing(f"counting a start of slot {slot}"):
            table = self._clear()
            counted, may_start = rules.count_start(table, slot)
            if counted != table:
                self._save(counted)
            return may_start

    def commit(self, slot: SlotName) -> None:
        """Mark the trial good and make it the last known good, in one write, read back.

        Raises:
            DeviceError: the slot is not booted, or the disk refused.
        """
        with self._writing(f"committing slot {slot}"):
            table = self._clear()
            committed = rules.commit(table, slot)
            if committed != table:
                self._save(committed)
            if self.probe() != committed:
                raise DeviceError(f"Slot {slot} was committed, and reads back as something else.")

    def revert(self, reason: str) -> None:
        """Mark the trial bad, and make the last known good the one that boots.

        Raises:
            DeviceError: the disk refused.
        """
        with self._writing("going back to the last known good slot"):
            table = self._clear()
            marked = rules.mark_bad(table, reason)
            if marked != table:
                self._save(marked)
            self._switch(marked.last_known_good)

    def invalidate(self, slot: SlotName, reason: str | None) -> None:
        """Mark a spare slot invalid, or bad with a reason; either way its seal is gone.

        Raises:
            DeviceError: the slot is booted or last known good.
        """
        with self._writing(f"marking slot {slot}"):
            table = self._clear()
            marked = rules.invalidate(table, slot, reason)
            if marked != table:
                self._save(marked)
            durable.remove_file(
                self._beside(slot, "seal")
            )  # a failed slot that keeps its checksum would "succeed" when it is tried again

    def path(self, slot: SlotName) -> Path:
        """Return the folder of a slot."""
        return self._root / slot

    @property
    def _current(self) -> Path:
        return self._root / "current"

    def _beside(self, slot: SlotName, what: str) -> Path:
        return self._root / f"{slot}.{what}"

    def _lay_out(self) -> None:
        for slot in SLOTS:
            durable.make_folder(self.path(slot), mode=0o755)
        traces = (
            "slots.json",
            "current",
            "A.seal",
            "B.seal",
        )  # of an earlier start: then the table is lost, not new
        if not any(os.path.lexists(self._root / name) for name in traces):
            self._save(rules.factory())

    def _clear(self) -> SlotTable:
        """Return the table when it is sure what boots; nothing is ever written on a guess."""
        link, known = self._link(), self._table()
        if known is None:
            raise DeviceError(
                f"{self._root / 'slots.json'} cannot be read, so no slot is written; start the agent again."
            )
        if link is None:
            raise DeviceError(
                f"{self._current} does not point to a slot, so it is unknown what runs; point it to the slot that does "
                f"(ln -sfn {known.last_known_good} {self._current}), and start the agent again."
            )
        return _booted(known, link)

    def _unclear(self, known: SlotTable | None, link: SlotName | None, *, change: bool = True) -> SlotTable:
        """What is known when the table or the link is not: unknown, with the names of what was last put there."""
        booted = link or (known.last_known_good if known else "A")
        table = SlotTable(
            {slot: self._evidence(slot) for slot in SLOTS}, booted, known.last_known_good if known else booted
        )
        if change and known is None and link is not None:
            # The table is lost and will not come back. Once written as unknown, the next update can mend it.
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._root / "slots.json", self._root / "slots.json.unreadable")
            self._save(table)
        return table

    def _evidence(self, slot: SlotName) -> Slot:
        manifest = _read(self._beside(slot, "manifest"), MANIFEST_BYTES_MAX)
        if manifest is None:
            return Slot(Holds.UNKNOWN)
        with contextlib.suppress(OperatorError):
            read = read_manifest(manifest)
            return Slot(Holds.UNKNOWN, str(read.update), read.sha256, read.release_counter)
        return Slot(Holds.UNKNOWN)

    def _table(self) -> SlotTable | None:
        data = _read(self._root / "slots.json", TABLE_BYTES_MAX)
        try:
            return None if data is None else decode_slots(data)
        except (LastgoodError, ValueError):
            return None

    def _save(self, table: SlotTable) -> None:
        durable.replace_file(self._root / "slots.json", encode_slots(table), mode=0o644)

    def _seal(self, slot: SlotName) -> dict[str, object]:
        data = _read(self._beside(slot, "seal"), TABLE_BYTES_MAX)
        try:
            seal = json.loads(data) if data else {}
        except ValueError:
            return {}
        return seal if isinstance(seal, dict) else {}

    def _link(self) -> SlotName | None:
        try:
            target = os.readlink(self._current)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINVAL}:  # not there, or no link
                return None
            raise
        for slot in SLOTS:
            if target == slot:
                return slot
        return None

    def _is_lost(self) -> bool:
        return not os.path.lexists(self._current)

    def _switch(self, slot: SlotName) -> None:
        if self._link() != slot:
            durable.replace_symlink(self._current, slot)
        if self._link() != slot:
            raise DeviceError(
                f"{self._current} was pointed to slot {slot}, and reads back as something else."
            )

    @contextlib.contextmanager
    def _writing(self, doing: str, *, lock: bool = True) -> Iterator[None]:
        try:
            with self._lock if lock else contextlib.nullcontext():
                yield
        except OSError as error:
            raise durable.disk_failure(error, doing) from error


def _booted(table: SlotTable, slot: SlotName) -> SlotTable:
    return replace(table, booted=slot)


def _read(path: Path, bytes_max: int) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read(bytes_max + 1)
    except FileNotFoundError:
        return None
    return None if len(data) > bytes_max else data
