"""The two lives of lastgood, as literal tables: a deployment's in the cloud, an attempt's on a device.

They say which moves exist; the rules that choose among them live in the cores (`cloud_stub/core`, `agent/core`).
The tables are the only source of the diagrams in `docs/lifecycles.md`. Source: DESIGN.md sections 3 and 5,
and the agent's table in RULES.md.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class DeploymentState(StrEnum):
    """Where a deployment stands."""

    SCHEDULED = "scheduled"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    CANCELED = "canceled"
    ROLLED_BACK = "rolled_back"


class DeploymentEvent(StrEnum):
    """What can happen to a deployment."""

    STARTED = "started"
    SUPERSEDED = "superseded"
    CANCELED = "canceled"
    TRIPPED = "tripped"


DEPLOYMENT: Final[Mapping[DeploymentState, Mapping[DeploymentEvent, DeploymentState]]] = {
    DeploymentState.SCHEDULED: {
        DeploymentEvent.STARTED: DeploymentState.ACTIVE,
        DeploymentEvent.CANCELED: DeploymentState.CANCELED,
    },
    DeploymentState.ACTIVE: {
        DeploymentEvent.SUPERSEDED: DeploymentState.SUPERSEDED,
        DeploymentEvent.CANCELED: DeploymentState.CANCELED,
        DeploymentEvent.TRIPPED: DeploymentState.ROLLED_BACK,
    },
    DeploymentState.SUPERSEDED: {},
    DeploymentState.CANCELED: {},
    DeploymentState.ROLLED_BACK: {},
}


class WorkflowState(StrEnum):
    """Where a device stands with the order it works on; from `switching` on there is no way to stop (R5)."""

    IDLE = "idle"
    DOWNLOADING = "downloading"
    INSTALLING = "installing"
    READY = "ready"
    SWITCHING = "switching"
    RESTARTING = "restarting"
    CONFIRMING = "confirming"
    REVERTING = "reverting"


class WorkflowEvent(StrEnum):
    """What can happen to a device's work. What a state does not list, it ignores."""

    ORDERED_SAME = "ordered_same"  # a higher epoch, and the target is the one in work or the one that runs
    ORDERED_OTHER = "ordered_other"  # a higher epoch with another target
    HELD = "held"  # a hold, or a cancel when it names an attempt
    PREPARED = "prepared"  # the manifest is here and verified
    DOWNLOADED = "downloaded"  # every file is here and verified
    DOWNLOAD_FAILED = "download_failed"
    INSTALLED = "installed"  # the spare is sealed
    INSTALL_FAILED = "install_failed"
    REHASHED = "rehashed"  # a sealed spare still holds what its manifest says (R25)
    VERIFY_FAILED = "verify_failed"
    GATE_OPENED = "gate_opened"  # the cloud said: this is still your newest order (R4)
    ACTIVATED = "activated"
    ACTIVATE_FAILED = "activate_failed"
    STARTED = "started"  # what runs was started from the trial slot, and the start was counted
    STOPPED = "stopped"  # what was started ended by itself
    HEALTH_PASSED = "health_passed"  # the whole soak held
    HEALTH_FAILED = "health_failed"
    CLOUD_REACHED = "cloud_reached"  # the cloud answered a hello that was said in this trial (R11)
    COMMITTED = "committed"
    COMMIT_FAILED = "commit_failed"
    REVERTED = "reverted"
    REVERT_FAILED = "revert_failed"
    STARTS_EXHAUSTED = "starts_exhausted"
    FELL_BACK = "fell_back"  # the slot that is booted is not the one that should be
    RESTARTED = "restarted"  # the agent starts: a power loss, a crash or a reboot lies behind it
    TIMER = "timer"  # a wait is over


_S = WorkflowState
_E = WorkflowEvent

WORKFLOW: Final[Mapping[WorkflowState, Mapping[WorkflowEvent, frozenset[WorkflowState]]]] = {
    _S.IDLE: {
        _E.ORDERED_SAME: frozenset({_S.IDLE}),
        _E.ORDERED_OTHER: frozenset({_S.DOWNLOADING, _S.IDLE}),
        _E.HELD: frozenset({_S.IDLE}),
        _E.FELL_BACK: frozenset({_S.IDLE, _S.REVERTING}),
        _E.COMMITTED: frozenset({_S.IDLE}),  # what a late fall-back left is last known good
        _E.COMMIT_FAILED: frozenset({_S.IDLE}),
        _E.TIMER: frozenset({_S.IDLE, _S.REVERTING}),  # a late fall-back is settled again
        _E.RESTARTED: frozenset({_S.IDLE, _S.REVERTING}),
    },
    _S.DOWNLOADING: {
        _E.ORDERED_SAME: frozenset({_S.DOWNLOADING}),
        _E.ORDERED_OTHER: frozenset({_S.IDLE}),
        _E.HELD: frozenset({_S.IDLE}),
        _E.PREPARED: frozenset({_S.DOWNLOADING, _S.IDLE}),
        _E.REHASHED: frozenset({_S.READY}),
        _E.DOWNLOADED: frozenset({_S.INSTALLING}),
        _E.DOWNLOAD_FAILED: frozenset({_S.DOWNLOADING, _S.IDLE}),
        _E.VERIFY_FAILED: frozenset({_S.DOWNLOADING, _S.IDLE}),
        _E.RESTARTED: frozenset({_S.DOWNLOADING, _S.READY, _S.IDLE, _S.REVERTING}),
        _E.TIMER: frozenset({_S.DOWNLOADING}),
    },
    _S.INSTALLING: {
        _E.ORDERED_SAME: frozenset({_S.INSTALLING}),
        _E.ORDERED_OTHER: frozenset({_S.IDLE}),
        _E.HELD: frozenset({_S.IDLE}),
        _E.INSTALLED: frozenset({_S.READY}),
        _E.INSTALL_FAILED: frozenset({_S.IDLE}),
        _E.VERIFY_FAILED: frozenset({_S.DOWNLOADING, _S.IDLE}),
        _E.RESTARTED: frozenset({_S.DOWNLOADING, _S.READY, _S.IDLE, _S.REVERTING}),
    },
    _S.READY: {
        _E.ORDERED_SAME: frozenset({_S.READY}),
        _E.ORDERED_OTHER: frozenset({_S.IDLE}),
        _E.HELD: frozenset({_S.IDLE}),
        _E.REHASHED: frozenset({_S.READY}),
        _E.GATE_OPENED: frozenset({_S.SWITCHING}),
        _E.VERIFY_FAILED: frozenset({_S.DOWNLOADING, _S.IDLE}),
        _E.RESTARTED: frozenset({_S.READY, _S.DOWNLOADING, _S.IDLE, _S.REVERTING}),
    },
    _S.SWITCHING: {
        _E.ORDERED_SAME: frozenset({_S.SWITCHING}),
        _E.ORDERED_OTHER: frozenset({_S.SWITCHING}),
        _E.HELD: frozenset({_S.SWITCHING}),
        _E.ACTIVATED: frozenset({_S.RESTARTING, _S.REVERTING, _S.IDLE}),
        _E.ACTIVATE_FAILED: frozenset({_S.IDLE, _S.REVERTING}),
        _E.RESTARTED: frozenset({_S.READY, _S.RESTARTING, _S.REVERTING, _S.IDLE}),
    },
    _S.RESTARTING: {
        _E.ORDERED_SAME: frozenset({_S.RESTARTING}),
        _E.ORDERED_OTHER: frozenset({_S.REVERTING}),
        _E.HELD: frozenset({_S.RESTARTING}),
        _E.STARTED: frozenset({_S.CONFIRMING}),
        _E.HEALTH_FAILED: frozenset({_S.REVERTING}),
        _E.STARTS_EXHAUSTED: frozenset({_S.REVERTING}),
        _E.FELL_BACK: frozenset({_S.IDLE, _S.REVERTING}),
        _E.RESTARTED: frozenset({_S.RESTARTING, _S.IDLE, _S.REVERTING}),
    },
    _S.CONFIRMING: {
        _E.ORDERED_SAME: frozenset({_S.CONFIRMING}),
        _E.ORDERED_OTHER: frozenset({_S.REVERTING, _S.CONFIRMING}),  # it waits while the commit is in hand
        _E.HELD: frozenset({_S.CONFIRMING}),
        _E.STOPPED: frozenset({_S.RESTARTING, _S.CONFIRMING}),  # the commit in hand is waited for
        _E.HEALTH_PASSED: frozenset({_S.CONFIRMING}),
        _E.HEALTH_FAILED: frozenset({_S.REVERTING}),
        _E.CLOUD_REACHED: frozenset({_S.CONFIRMING}),
        _E.COMMITTED: frozenset(
            {_S.IDLE, _S.CONFIRMING, _S.REVERTING}
        ),  # what was read back may say otherwise
        _E.COMMIT_FAILED: frozenset({_S.CONFIRMING, _S.REVERTING, _S.IDLE}),
        _E.STARTS_EXHAUSTED: frozenset({_S.REVERTING}),
        _E.FELL_BACK: frozenset({_S.IDLE, _S.REVERTING}),
        _E.RESTARTED: frozenset({_S.RESTARTING, _S.IDLE, _S.REVERTING}),
        _E.TIMER: frozenset({_S.CONFIRMING, _S.REVERTING}),
    },
    _S.REVERTING: {
        _E.ORDERED_SAME: frozenset({_S.REVERTING}),
        _E.ORDERED_OTHER: frozenset({_S.REVERTING}),
        _E.HELD: frozenset({_S.REVERTING}),
        _E.REVERTED: frozenset({_S.IDLE, _S.REVERTING}),
        _E.REVERT_FAILED: frozenset({_S.REVERTING}),
        _E.RESTARTED: frozenset({_S.REVERTING}),
        _E.TIMER: frozenset({_S.REVERTING}),
    },
}

PAST_NO_RETURN: Final = frozenset({_S.SWITCHING, _S.RESTARTING, _S.CONFIRMING, _S.REVERTING})
"""From the durable record `switching` on, a cancel is too late (R5) and every failure is the update's (R10)."""
