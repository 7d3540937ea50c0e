"""What may be imported: an update never changes. Source: DESIGN.md section 2."""

from cloud_stub.core.rows import UpdateRow
from protocol.errors import OperatorError
from protocol.manifest import Manifest


class AlreadyImported(OperatorError):
    """Another manifest has this update's name already: well made, and it cannot be done as things stand."""


def check_new(manifest: Manifest, known: UpdateRow | None) -> None:
    """Hold a manifest against the update of the same name, if there is one; the very same manifest again is no error.

    Raises:
        AlreadyImported: they differ.
    """
    if known is not None and known.sha256 != manifest.sha256:
        raise AlreadyImported(
            f"{manifest.update} is imported already with other content; an update never changes: give it a new version."
        )
