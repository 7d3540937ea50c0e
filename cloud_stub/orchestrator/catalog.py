"""Updates within a transaction: imported and withdrawn.

It reads no files: those are stored and checked before the manifest comes here. Source: DESIGN.md section 2; R22.
"""

from cloud_stub.core.imports import check_new
from cloud_stub.core.rows import UpdateRow
from cloud_stub.orchestrator import deployments
from cloud_stub.orchestrator.turn import Turn
from protocol.errors import OperatorError
from protocol.manifest import read_manifest


def add(turn: Turn, data: bytes, who: str) -> UpdateRow:
    """Make an update known; the very same manifest again is no error.

    Raises:
        OperatorError: the manifest is not valid.
        AlreadyImported: another one has this name already.
    """
    manifest = read_manifest(data)
    if not manifest.document.isDeployable:
        raise OperatorError(
            f"{manifest.update} says isDeployable: false; import the update that refers to it instead."
        )
    known = turn.unit.update(str(manifest.update))
    check_new(manifest, known)
    if known is not None:
        return known
    row = UpdateRow(
        update=str(manifest.update),
        sha256=manifest.sha256,
        size_bytes=manifest.size_bytes,
        manifest=data,
        release_counter=manifest.release_counter,
        compatibility=tuple(manifest.document.compatibility),
        bytes_total=manifest.bytes_total,
        imported_ms=turn.now_ms,
        description=manifest.document.description,
    )
    turn.unit.put_update(row)
    turn.audit(who, "update.imported", row.update, sha256=row.sha256, bytes_total=row.bytes_total)
    return row


def withdraw(turn: Turn, name: str, why: str, who: str) -> UpdateRow:
    """Withdraw an update by hand (R22).

    Raises:
        OperatorError: it is not known, withdrawn already, or named by a live policy.
    """
    update = turn.unit.update(name)
    if update is None:
        raise OperatorError(f"{name} is not imported; see `lastgood update list`.")
    if update.withdrawn_ms is not None:
        raise OperatorError(f"{name} was withdrawn already: {update.withdrawn_why}.")
    return deployments.withdraw(turn, update, why, who, by_trip=False)
