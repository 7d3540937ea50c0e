"""What the API shows: models of devices, groups, updates and deployments. `show.py` makes them from rows.

They are not the rows: what operators' scripts rely on has its own shape here, and `--json` of the command line prints
the same objects. Times end in `_ms` and are UTC milliseconds, as everywhere; secrets and hashes of secrets stay out.
"""

from pydantic import BaseModel, ConfigDict

from cloud_stub.core.rows import AssignmentState
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.outcomes import Party, Reason


class View(BaseModel):
    """What all views share."""

    model_config = ConfigDict(frozen=True)


class UpdateName(View):
    """An update by its name and its true identity."""

    update: str
    sha256: str


class SlotView(View):
    """One slot of a device, with its marks."""

    name: str
    holds: str
    update: str | None
    sha256: str | None
    starts_left: int | None
    reason: str | None
    booted: bool
    last_known_good: bool
    trial: bool


class AssignmentView(View):
    """What one device was told in one deployment, and how it went."""

    deployment: str
    device: str
    state: AssignmentState
    update: str | None
    attempt: int
    phase: WorkflowState
    reason: Reason | None
    reason_sentence: str
    party: Party | None
    detail: str
    already_there: bool
    counted: bool
    guessed: bool
    moved_on: bool
    retry_at_ms: int | None
    cancel: str | None
    began_ms: int | None
    bytes_done: int
    bytes_total: int
    updated_ms: int


class DeviceView(View):
    """One device in a list."""

    id: str
    group: str
    group_from: str  # override, tag or default
    device_class: str | None
    online: bool
    last_seen_ms: int | None
    runs: str | None
    runs_sha256: str | None
    phase: WorkflowState
    cloned: bool
    epoch: int
    reported_epoch: int | None
    ordered: str | None  # the update it is ordered to run, `hold`, or nothing
    ordered_by: str | None  # the deployment
    ordered_why: str


class DeviceDetail(DeviceView):
    """One device in full."""

    created_ms: int
    properties: dict[str, str]
    tags: dict[str, str]
    slots: list[SlotView]
    floor: int
    agent_version: str
    outcomes_folded: int
    assignments: list[AssignmentView]


class ReasonsView(View):
    """Why a device is where it is: sentences, the deciding one first."""

    device: str
    why: list[str]


class RunsView(View):
    """How many members of a group run an update."""

    update: str | None
    sha256: str | None
    count: int


class ClassView(View):
    """One device class within a group."""

    device_class: str
    members: int
    floor_max: int


class GroupView(View):
    """One group: its members, and what they run."""

    group: str
    members: int
    online: int
    runs: list[RunsView]
    classes: list[ClassView]
    active: str | None  # the active deployment
    offers: list[str]  # its updates


class FileView(View):
    """One file of an update."""

    filename: str
    size_bytes: int
    sha256: str


class UpdateView(View):
    """One update in a list."""

    update: str
    sha256: str
    description: str
    release_counter: int
    compatibility: list[dict[str, str]]
    bytes_total: int
    imported_ms: int
    withdrawn_ms: int | None
    withdrawn_why: str


class UpdateDetail(UpdateView):
    """One update in full."""

    files: list[FileView]
    steps: list[str]


class PolicyView(View):
    """A rollback policy with its numbers of the moment."""

    failed_percent: int
    failed_count: int
    match: str
    percent_of: str
    rollback_to: list[UpdateName]
    rule: str
    disarmed: str
    armed: bool
    failed: int
    base: int
    needed: int | None
    sentence: str


class TallyView(View):
    """Counts over the devices of a deployment."""

    pending: int
    working: int
    succeeded: int
    already_there: int
    failed: int
    counted: int
    canceled: int
    incompatible: int
    unprotected: int
    dropped: int
    moved_on: int


class TripView(View):
    """The numbers that tripped a policy, frozen."""

    at_ms: int
    failed: int
    base: int
    failed_count: int
    failed_percent: int
    match: str
    percent_of: str
    sentence: str


class DeploymentView(View):
    """One deployment in a list."""

    id: str
    group: str
    state: DeploymentState
    updates: list[UpdateName]
    created_ms: int
    created_by: str
    start_at_ms: int | None
    started_ms: int | None
    ended_ms: int | None
    ended_why: str
    supersedes: str | None
    superseded_by: str | None
    cause: str | None
    rollback: str | None
    policy: PolicyView | None
    trip: TripView | None
    tally: TallyView
    allow_downgrade: bool
    retries: int
    retry_delay_ms: int
    device_timeout_ms: int
    attempt_timeout_ms: int


class FailureView(View):
    """How many devices failed for one reason, and whose fault it is."""

    reason: Reason | None
    sentence: str
    party: Party | None
    fault: str
    count: int
    counted: int
    devices: list[str]  # a few of them


class DeploymentDetail(DeploymentView):
    """One deployment in full."""

    headline: str
    settled: bool  # active, and every member has a verdict and waits for no retry
    retrying: int
    undecided: int  # members whose order is still to be written
    failures: list[FailureView]


class PlanClassView(View):
    """What would happen to the members of one device class."""

    device_class: str
    members: int
    update: str | None
    already_there: int
    refuse: int
    back_to: str | None
    why_not: str


class PlanView(View):
    """What a deployment would do."""

    group: str
    updates: list[UpdateName]
    members: int
    to_update: int
    already_there: int
    refuse: int
    incompatible: int
    unknown_class: int
    classes: list[PlanClassView]
    supersedes: str | None
    failures_needed: int | None
    policy_sentence: str
    warnings: list[str]
    digest: str


class JoinView(View):
    """A new device's secret, shown once."""

    device: str
    token: str
    join: str  # the one line to run on it


class AuditView(View):
    """One entry of the audit log."""

    number: int
    at_ms: int
    who: str
    what: str
    about: str
    facts: dict[str, object]
    chain: str
