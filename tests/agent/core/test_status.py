"""The sentence that says what a device waits for."""

import pytest

from agent.core.model import Watch
from agent.core.settings import Settings
from agent.core.status import sentence
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState as S
from tests.agent.builders import a_manifest, an_order
from tests.agent.core.test_workflow import works
from tests.agent.fakes_core import Rig

NEW = a_manifest("2.0")


@pytest.mark.parametrize("state", S)
def test_every_kind_of_work_has_its_sentence(state: S) -> None:
    """No state leaves a person without an answer, whatever is or is not connected."""
    for work in works(state):
        for connected in (True, False):
            for again_s in (None, 7):
                said = sentence(work, Settings(), connected=connected, again_s=again_s)
                assert said.endswith((".", "no"))


def test_a_device_says_what_it_waits_for() -> None:
    """The gate, a back-off with its seconds, the cloud's answer in a trial."""
    rig = Rig().start().connect()
    rig.answer_hello()
    rig.first_order(an_order(10, NEW), NEW)
    rig.finish(rig.waiting[-1], E.DOWNLOAD_FAILED, transient=True)
    assert "failed 1 of 8 times" in rig.device.waits_for()
    rig.tick()
    rig.work(until=S.READY)
    rig.disconnect()
    assert rig.device.waits_for() == (
        "Waits for the cloud's word that its order still stands. There is no connection to the broker."
    )
    rig.connect()
    rig.work(until=S.CONFIRMING)
    rig.perform(rig.next(Watch))
    assert "for 30 min at most" in rig.device.waits_for()
