"""What a device waits for, as one sentence for people.

It decides nothing; it reads the workflow as it stands.
"""

from agent.core.model import Workflow
from agent.core.settings import MINUTE_MS, Settings
from protocol.lifecycle import WorkflowState as _S


def sentence(work: Workflow, settings: Settings, *, connected: bool, again_s: int | None) -> str:
    """Return what the device waits for; `again_s`: seconds until it tries again by itself, None without a wait."""
    cloud = "" if connected else " There is no connection to the broker."
    if work.state is _S.DOWNLOADING and work.refreshed and again_s is not None:
        return f"Waits for new addresses from the cloud, {again_s} s more at most.{cloud}"
    if work.state is _S.DOWNLOADING and again_s is not None:
        tried = f"it has failed {work.tries} of {settings.download_tries_max} times"
        return f"Tries the download again in {again_s} s; {tried}."
    if work.state is _S.READY and not work.phase:
        return f"Waits for the cloud's word that its order still stands.{cloud}"
    if work.state is _S.CONFIRMING:
        return _trial(work, settings, cloud, again_s)
    if work.state is _S.REVERTING and work.stuck:
        return f"Tries to go back again in {again_s or 0} s: {work.stuck}"
    return _IN_HAND[work.state] + (cloud if work.state is _S.IDLE else "")


def _trial(work: Workflow, settings: Settings, cloud: str, again_s: int | None) -> str:
    if work.commit_tries:
        return (
            "Waits for the slot to be committed."
            if again_s is None
            else f"Commits the slot again in {again_s} s."
        )
    if not work.health_held:
        return "Waits for the health checks to hold over the whole soak."
    return f"Waits for the cloud to answer the trial, for {settings.cloud_limit_ms // MINUTE_MS} min at most.{cloud}"


_IN_HAND = {
    _S.IDLE: "Waits for an order.",
    _S.DOWNLOADING: "Fetches the update.",
    _S.INSTALLING: "Installs into the spare slot.",
    _S.READY: "Holds the sealed slot against its manifest.",
    _S.SWITCHING: "Makes the new slot the one that boots.",
    _S.RESTARTING: "Starts the trial.",
    _S.CONFIRMING: "Watches the trial.",
    _S.REVERTING: "Goes back to the last known good slot.",
}
