"""The port `Trust`: leads from a signed assignment to the verified bytes of its manifest.

It does not read the manifest. Today the assignment's own signature is the authority: the manifest is right when its
length and sha256 are those that the order names, wherever it came from. TUF fills this port later.
"""

from hashlib import sha256

from agent.ports import SERVED_UNCHANGED, Fetcher, FetchFailed, WorkFailed
from protocol.manifest import MANIFEST_BYTES_MAX
from protocol.messages import Assignment
from protocol.outcomes import Reason


class SignedAssignmentTrust:
    """Trusts what a verified assignment names, and nothing else."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def manifest_of(self, order: Assignment) -> bytes:
        """Return the verified bytes of the assignment's manifest.

        Raises:
            WorkFailed: `network` (transient), `server` or `verify_failed`.
        """
        target = order.target
        if target is None or target.size_bytes > MANIFEST_BYTES_MAX:
            raise WorkFailed(Reason.SERVER, "The order names no manifest that a device could read.")
        try:
            data = self._fetcher.small(order, f"manifests/{target.path}", target.size_bytes)
        except FetchFailed as error:
            raise _translated(error) from error
        if len(data) != target.size_bytes or sha256(data).hexdigest() != target.sha256:
            raise WorkFailed(
                Reason.VERIFY_FAILED,
                f"The manifest of {target.update} is not the one that the signed order names; it was dropped. "
                + SERVED_UNCHANGED,
            )
        return data


def _translated(error: FetchFailed) -> WorkFailed:
    status = error.status
    if status is None:
        return WorkFailed(Reason.NETWORK, str(error), transient=True)
    if status == 200:  # it came, and was more than the order names
        return WorkFailed(Reason.VERIFY_FAILED, str(error))
    return WorkFailed(
        Reason.SERVER,
        str(error),
        transient=status == 429 or status >= 500,
        refresh=status in {401, 403, 404, 410},
    )
