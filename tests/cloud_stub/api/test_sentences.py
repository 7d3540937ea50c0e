"""The sentences about policies, deployments and failures, and how values are written: pure."""

from dataclasses import replace
from typing import Any

import pytest

from cloud_stub.api import sentences, shown
from cloud_stub.core.rows import DeploymentRow, Policy, Tally, Trip, UpdateRef
from protocol.lifecycle import DeploymentState
from protocol.outcomes import Party, Reason

POLICY = Policy(10, 5, (UpdateRef("acme/pump:1.0", "1"),))
ROW = DeploymentRow(
    "d1", "north", DeploymentState.ACTIVE, (UpdateRef("acme/pump:2.0", "2"),), 0, "me", policy=POLICY
)


@pytest.mark.parametrize(
    ("changes", "members", "said"),
    [
        ({"tally": Tally(counted=4)}, 120, "4 of 120 failed (3.3 %); goes back at 12."),
        ({"tally": Tally(counted=4, moved_on=10)}, 110, "4 of 120 failed (3.3 %); goes back at 12."),
        ({"policy": replace(POLICY, match="any")}, 120, "0 of 120 failed (0.0 %); goes back at 5."),
        ({}, 0, "0 of 0 failed (0.0 %). Not armed: the group has no compatible member yet"),
        ({"tally": Tally(counted=1)}, 3, "1 of 3 failed (33.3 %). Not armed until 5 members"),
        ({"policy": replace(POLICY, disarmed="its target was withdrawn")}, 9, "Disarmed: its target was withdrawn."),
        ({"state": DeploymentState.SUPERSEDED, "tally": Tally(counted=2)}, 0, "2 failed by the update's fault"),
        ({"state": DeploymentState.SCHEDULED}, 50, "Goes back when 5 devices and 10 % of the group have failed"),
        (
            {
                "policy": replace(POLICY, percent_of="attempted"),
                "tally": Tally(counted=3, succeeded=30, already_there=3),
            },
            120,
            "3 of 30 attempted failed (10.0 %); goes back when 5 devices and 10 % of those that tried it have failed.",
        ),
        (
            {"state": DeploymentState.ROLLED_BACK, "trip": Trip(0, 12, 118, 5, 10, "all", "group")},
            0,
            "Went back: 12 of 118 failed (10.2 %); the policy was: when 5 devices and 10 % of the group have failed.",
        ),
    ],
)  # fmt: skip
def test_R23_a_policys_numbers_are_one_sentence(changes: dict[str, Any], members: int, said: str) -> None:
    """What an operator reads at each moment of a deployment."""
    row = replace(ROW, **changes)
    assert row.policy is not None
    assert sentences.policy_now(row, row.policy, members).startswith(said)


@pytest.mark.parametrize(
    ("tally", "retrying", "undecided", "said"),
    [
        (Tally(), 0, 0, "No device that it fits is in the group yet."),
        (Tally(), 0, 7, "0 devices run it, 7 not begun."),
        (Tally(succeeded=1), 0, 0, "Settled: 1 device runs it."),
        (Tally(succeeded=9, already_there=2, failed=1), 0, 0, "Settled: 9 devices run it (2 did before), 1 failed."),
        (Tally(failed=3), 2, 0, "0 devices run it, 1 failed, 2 failed and waiting to retry."),
        (Tally(pending=1, working=2, canceled=3, incompatible=4), 0, 0,
         "0 devices run it, 2 working, 1 not begun, 3 canceled, 4 incompatible."),
    ],
)  # fmt: skip
def test_the_headline_says_where_a_deployment_stands(
    tally: Tally, retrying: int, undecided: int, said: str
) -> None:
    """Every device is in exactly one of its counts."""
    assert sentences.headline(replace(ROW, tally=tally), retrying, undecided) == said


def test_R10_every_reason_has_words_and_every_party_a_fault() -> None:
    """No reason is shown as a bare identifier, and only the update's fault counts."""
    assert all(" " in sentences.failure(reason) for reason in Reason)
    assert {party: "not counted" in sentences.fault(party) for party in Party} == {
        Party.UPDATE: False,
        Party.DEVICE: True,
        Party.SERVER: True,
        Party.NETWORK: True,
    }


def test_bars_fill_their_width() -> None:
    """The parts of a bar lie side by side, and nothing of an empty one is drawn."""
    parts = shown.bar([(1, "a", "x"), (0, "b", "y"), (3, "c", "z")])
    assert [(part["x"], part["width"]) for part in parts] == [(0, 25), (25, 0), (25, 75)]
    assert [part["width"] for part in shown.bar([(0, "a", "x")])] == [0]


@pytest.mark.parametrize(
    ("ago_ms", "said"),
    [(500, "now"), (90_000, "1 min ago"), (-3_600_000, "in 1 h"), (200_000_000, "2 d ago")],
)
def test_instants_are_relative_and_whole(ago_ms: int, said: str) -> None:
    """The text is short; the title has the instant in UTC."""
    written = str(shown.when(1_795_487_971_000, 1_795_487_971_000 + ago_ms))
    assert f">{said}<" in written
    assert 'title="2026-11-24 ' in written
    assert str(shown.when(None, 0)) == "never"


@pytest.mark.parametrize(("versions"), [("1.0", "2.0"), ("1.0", "1.1"), ("1.0.0", "1.0.1"), ("1", "2")])
def test_neighbouring_versions_have_other_colours(versions: tuple[str, str]) -> None:
    """So that a bar shows how far a rollout is."""
    first, second = (shown.hue(f"acme/pump:{version}") for version in versions)
    assert first != second


def test_sizes_and_durations() -> None:
    """In their largest unit."""
    assert [shown.size(count) for count in (0, 999, 1_500, 2_000_000, 3 * 10**12)] == [
        "0 B", "999 B", "1.5 kB", "2.0 MB", "3000.0 GB",
    ]  # fmt: skip
    assert [shown.duration(ms) for ms in (5, 1_000, 90_000, 3_600_000, 86_400_000)] == [
        "5 ms", "1 s", "1.5 min", "1 h", "1 d",
    ]  # fmt: skip
