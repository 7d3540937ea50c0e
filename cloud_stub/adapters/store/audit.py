"""The chain that makes tampering with the audit log show.

It decides nothing about what is logged. Each entry's chain is the sha256 over the chain before it and the entry as
canonical JSON. Whoever can write the database can also write the whole log anew or cut off its end: keep the newest
chain elsewhere to see that too.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Final

from cloud_stub.core.rows import AuditRow
from cloud_stub.ports import PAGE_ROWS_MAX, Reader
from protocol.strict_json import dump

CHAIN_START: Final = "0" * 64  # what stands before the first entry


def next_entry(
    last: AuditRow | None, at_ms: int, who: str, what: str, about: str, facts: Mapping[str, object]
) -> AuditRow:
    """Return the entry that follows `last`, with its number and chain."""
    number = 1 if last is None else last.number + 1
    before = CHAIN_START if last is None else last.chain
    return AuditRow(
        number, at_ms, who, what, about, facts, _chain(before, number, at_ms, who, what, about, facts)
    )


def verify_audit(reader: Reader) -> int | None:
    """Return the number of the first entry that does not follow from the one before it, or None when all do."""
    first_bad: int | None = None
    newer: AuditRow | None = None
    for entry in _newest_first(reader):
        if newer is not None and not _follows(newer, entry.number, entry.chain):
            first_bad = newer.number
        newer = entry
    if newer is not None and not _follows(newer, 0, CHAIN_START):
        first_bad = newer.number
    return first_bad


def _newest_first(reader: Reader) -> Iterator[AuditRow]:
    before: int | None = None
    while page := reader.audit(limit=PAGE_ROWS_MAX, before=before):
        yield from page
        before = page[-1].number


def _follows(entry: AuditRow, number_before: int, chain_before: str) -> bool:
    chain = _chain(chain_before, entry.number, entry.at_ms, entry.who, entry.what, entry.about, entry.facts)
    return entry.number == number_before + 1 and entry.chain == chain


def _chain(
    before: str, number: int, at_ms: int, who: str, what: str, about: str, facts: Mapping[str, object]
) -> str:
    entry = {"number": number, "at_ms": at_ms, "who": who, "what": what, "about": about, "facts": facts}
    return sha256(before.encode("ascii") + dump(entry)).hexdigest()
