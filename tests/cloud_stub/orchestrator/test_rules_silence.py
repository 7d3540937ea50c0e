"""The cloud's side of RULES.md: what the cloud does not do before it could have heard (R2, R12, R21)."""

import sqlite3
from pathlib import Path

from cloud_stub.adapters.store import open_store
from cloud_stub.core.rows import AssignmentState
from cloud_stub.orchestrator import Delivered, Now, Ticked
from protocol import messages
from protocol.errors import ServiceError
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.messages import Progress
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import Cloud, accepted
from tests.cloud_stub.orchestrator.rule_bench import V1, V2, running
from tests.cloud_stub.orchestrator.test_rules_races import Refusing, silence

S = AssignmentState


def test_R2_R21_a_restored_backup_starts_no_schedule_before_it_is_noticed(tmp_path: Path) -> None:
    """The backup's schedule had run and gone wrong since; devices that are ahead must be able to show it first."""
    cloud = Cloud(store=open_store(str(tmp_path / "live.db")))
    for version in (V1, V2):
        cloud.update(version)
    pi = running(cloud, 1)[0]
    later = cloud.deploy("north", V2, start_at_ms=cloud.now.wall_ms + 5_000)
    with sqlite3.connect(tmp_path / "live.db") as live, sqlite3.connect(tmp_path / "old.db") as old:
        live.backup(old)
    silence(cloud, 6)
    newest = accepted(pi)
    assert newest.deployment == later
    cloud.store.close()
    cloud.store, cloud.now = open_store(str(tmp_path / "old.db")), Now(cloud.now.wall_ms + 60_000, 0)
    cloud.restart()
    cloud.wait(0)
    assert cloud.deployment(later).state is DeploymentState.SCHEDULED
    cloud.hello(pi)
    assert pi.acks[-1].newest_epoch < newest.epoch
    cloud.hello(pi, proof=cloud.key.sign(messages.write(newest)).decode())
    silence(cloud, 4)
    assert cloud.deployment(later).state is DeploymentState.ACTIVE
    assert accepted(pi).action == "hold"
    cloud.store.close()


def test_R2_a_retry_waits_until_devices_could_be_heard(cloud: Cloud) -> None:
    """Its wait is over when the cloud starts; it opens one sync window and one heartbeat later."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, retries=1, retry_delay_ms=1_000)
    cloud.begin(pi)
    cloud.fail(pi)
    cloud.restart()
    cloud.wait(1_000)
    assert cloud.row(deployment, "a").state is S.FAILED
    cloud.wait(1_000)
    assert cloud.row(deployment, "a").state is S.PENDING


def test_R12_time_in_which_nothing_could_be_stored_counts_no_silence() -> None:
    """The disk is full for minutes, so that no report is stored; the first good turn times nobody out."""
    store = Refusing()
    cloud = Cloud(store=store)
    cloud.update(V1)
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=5_000)
    silence(cloud, 4)
    cloud.begin(pi, WorkflowState.CONFIRMING)
    store.refuses_at_end = ServiceError("The disk is full.")
    for _ in range(60):
        cloud.now = Now(cloud.now.wall_ms + 1_000, cloud.now.mono_ms + 1_000)
        try:
            cloud.orchestrator.handle([Ticked()], cloud.now)
        except ServiceError:
            continue
    store.refuses_at_end = None
    silence(cloud, 3)
    assert cloud.row(deployment, "a").state is S.WORKING
    silence(cloud, 6)
    assert cloud.row(deployment, "a").state is S.FAILED


def test_R12_a_process_that_stood_still_counts_no_silence(cloud: Cloud) -> None:
    """It was stopped for an hour while both clocks went on; who is silent after that still times out."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=5_000)
    cloud.begin(pi, WorkflowState.CONFIRMING)
    cloud.stall(3_600_000)
    silence(cloud, 3)
    assert cloud.row(deployment, "a").state is S.WORKING
    silence(cloud, 6)
    assert cloud.row(deployment, "a").state is S.FAILED


def test_R12_a_device_that_speaks_within_a_short_time_out_is_not_silent(cloud: Cloud) -> None:
    """When it was heard is kept more exactly where a deployment allows little silence."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=5_000)
    silence(cloud, 120)
    cloud.hello(pi)
    order = cloud.begin(pi)
    for done in range(1, 30):
        silence(cloud, 2)
        said = Progress(device="a", deployment=deployment, epoch=order.epoch, attempt=order.attempt or 0,
                        phase=WorkflowState.DOWNLOADING, bytes_done=done, bytes_total=99)  # fmt: skip
        cloud.feed(Delivered(Kind.PROGRESS, "a", messages.write(said)))
        assert cloud.row(deployment, "a").state is S.WORKING
    silence(cloud, 9)
    assert cloud.row(deployment, "a").state is S.FAILED
