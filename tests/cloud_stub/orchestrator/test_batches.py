"""A batch of inputs means what its inputs mean one after the other; it is only cheaper."""

from cloud_stub.orchestrator import Delivered
from protocol import messages
from protocol.lifecycle import WorkflowState
from protocol.messages import Hello
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import Cloud, Pi

PHASES = (WorkflowState.DOWNLOADING, WorkflowState.INSTALLING, WorkflowState.READY)


def a_fleet_at_work() -> tuple[Cloud, list[Pi], str]:
    """Return a cloud whose six devices were told to install an update."""
    cloud = Cloud()
    fleet = cloud.fleet(6, "g")
    deployment = cloud.deploy("g", cloud.update("acme/app:1.0"))
    for pi in fleet:
        cloud.hello(pi)
        cloud.begin(pi)
    return cloud, fleet, deployment


def said(cloud: Cloud, fleet: list[Pi]) -> list[Delivered]:
    """Return two states and a hello of each device, in turns."""
    found = []
    for phase in PHASES[1:]:
        for pi in fleet:
            pi.work = pi.work.model_copy(update={"state": phase})
            pi.sequence += 1
            found.append(Delivered(Kind.STATE, pi.id, messages.write(cloud.state_of(pi))))
    found += [Delivered(Kind.HELLO, pi.id, hello_of(pi)) for pi in fleet]
    return found


def hello_of(pi: Pi) -> bytes:
    """Return a hello of the connection and sequence that the device has."""
    return messages.write(
        Hello(
            device=pi.id,
            instance=pi.instance,
            connection=pi.connection,
            sequence=pi.sequence,
            digest="0" * 64,
            epoch=pi.epoch,
            nonce="asks",
        )
    )


def test_a_batch_leaves_the_same_rows_as_its_messages_one_by_one() -> None:
    """Rows, tallies and each device's last acknowledgement are the same, however the messages are cut into batches."""
    seen = []
    for size in (1, 5, 100):
        cloud, fleet, deployment = a_fleet_at_work()
        inputs = said(cloud, fleet)
        published = []
        for begin in range(0, len(inputs), size):
            published += cloud.feed(*inputs[begin : begin + size])
        cloud.check_tallies()
        rows = [(cloud.device(pi.id), cloud.row(deployment, pi.id)) for pi in fleet]
        assert {row.phase for _, row in rows} == {WorkflowState.READY}
        seen.append((rows, {(each.device, each.kind): each.payload for each in published}))
    assert seen[0] == seen[1] == seen[2]


def test_what_cannot_be_read_loses_only_itself() -> None:
    """A message that is no JSON, one of another device, and one of nobody stand among good ones; those arrive."""
    cloud, fleet, deployment = a_fleet_at_work()
    good = said(cloud, fleet)
    inputs = [
        Delivered(Kind.STATE, fleet[0].id, b"{"),
        *good,
        Delivered(Kind.STATE, fleet[1].id, good[0].payload),
        Delivered(Kind.HELLO, "nobody", hello_of(Pi("nobody"))),
    ]
    cloud.feed(*inputs)
    assert dict(cloud.orchestrator.refused) == {"not_json": 1, "other_device": 1, "unknown_device": 1}
    assert {cloud.row(deployment, pi.id).phase for pi in fleet} == {WorkflowState.READY}


def test_an_order_in_answer_to_a_hello_is_not_sent_twice() -> None:
    """A device that was away while its order changed is sent it once: not again by the same turn's outbox."""
    cloud = Cloud()
    pi = cloud.pi("late", "g")
    cloud.hello(pi)
    cloud.feed(
        Delivered(Kind.GONE, pi.id, messages.write(messages.Gone(device=pi.id, connection=pi.connection)))
    )
    cloud.wait(cloud.settings.offline_debounce_ms + 1)
    cloud.deploy("g", cloud.update("acme/app:1.0"))
    assert cloud.device(pi.id).epoch > cloud.device(pi.id).published_epoch
    orders = [each for each in cloud.hello(pi) if each.kind is Kind.DESIRED]
    assert len(orders) == 1
