"""Who is in a fleet and who fails: decided by the seed alone."""

from simulator.core.fleet import draw, failures, members
from simulator.core.scenario import FailurePart, read_scenario
from tests.simulator.scenarios import SMALL

BIG = read_scenario(SMALL.replace("count = 4", "count = 2_000"), "big.toml")
FLEET = members(BIG, 3)


def rule(**words: object) -> FailurePart:
    """Return a rule about the one update."""
    return FailurePart.model_validate({"update": "acme/app:1.0", "how": "health_fails", **words})


def test_the_same_seed_names_the_same_devices_and_another_seed_others() -> None:
    """Neither order nor other devices change a device's lot."""
    share = rule(share=0.2)
    found = failures([share], FLEET, 3)
    assert found == failures([share], list(reversed(FLEET)), 3)
    assert set(found) != set(failures([share], FLEET, 4))
    assert all(draw(3, device, update) < 0.2 for device, update in found)


def test_a_share_is_about_that_share() -> None:
    """A fifth of two thousand devices, give or take what chance gives."""
    assert 330 < len(failures([rule(share=0.2)], FLEET, 3)) < 470


def test_a_count_is_exactly_that_many_of_those_in_scope() -> None:
    """Counting rules choose within their groups, fleets and classes."""
    found = failures([rule(count=2, fleets=["late"])], FLEET, 3)
    assert sorted(device for device, _ in found) == ["late-001", "late-002"]
    assert len(failures([rule(count=7, properties={"model": "one"})], FLEET, 3)) == 7
    assert not failures([rule(count=7, properties={"model": "three"})], FLEET, 3)


def test_without_a_choice_all_in_scope_fail_and_named_devices_by_name() -> None:
    """A rule without a number is about everybody it names."""
    assert len(failures([rule(groups=["kitchen"])], FLEET, 3)) == 2_002
    assert [device for device, _ in failures([rule(devices=["late-001"])], FLEET, 3)] == ["late-001"]


def test_of_two_rules_the_first_counts() -> None:
    """Two rules for one device and update do not mix."""
    both = failures([rule(devices=["late-001"], attempts=1), rule()], FLEET, 3)
    assert both["late-001", "acme/app:1.0"].attempts == 1
    assert both["late-002", "acme/app:1.0"].attempts is None


def test_arrivals_are_spread_over_the_time_that_was_asked_for() -> None:
    """A fleet that arrives at once arrives at the rate that the network takes; one that joins by a step waits."""
    over = read_scenario(
        SMALL.replace("count = 4", 'count = 100\narrives = "over"\nover_s = 10'), "over.toml"
    )
    times = [member.arrives_ms for member in members(over, 3) if member.fleet == "kitchen"]
    assert 8_000 < max(time for time in times if time is not None) <= 10_000
    assert all(member.arrives_ms is None for member in FLEET if member.fleet == "late")
    assert max(member.arrives_ms or 0 for member in FLEET) <= 2_002


def test_one_in_so_many_fetches_for_itself() -> None:
    """The option decides how many downloads are real."""
    few = read_scenario(
        SMALL.replace("count = 4", "count = 2_000") + "[download]\nreal_one_in = 10\n", "few.toml"
    )
    assert 140 < sum(member.fetches for member in members(few, 3)) < 260
    assert all(member.fetches for member in FLEET)
