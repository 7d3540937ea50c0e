"""Virtual time: order, cancelling, and the end of a run."""

from simulator.virtual.clock import VirtualClock


def test_actions_happen_in_time_and_within_a_millisecond_in_the_order_of_asking() -> None:
    """The heap never reorders what falls together."""
    clock, seen = VirtualClock(), list[str]()
    for delay_ms, name in ((20, "late"), (10, "first"), (10, "second")):
        clock.call_later(delay_ms, lambda name=name: seen.append(f"{name} at {clock.now_ms()}"))  # type: ignore[misc]
    clock.run_until(100)
    assert seen == ["first at 10", "second at 10", "late at 20"]
    assert clock.now_ms() == 100


def test_nothing_happens_within_the_call_that_asked() -> None:
    """Even without a delay an action waits for its turn."""
    clock, seen = VirtualClock(), list[int]()
    clock.call_later(0, lambda: seen.append(1))
    assert seen == []
    clock.run_until(0)
    assert seen == [1]


def test_what_is_canceled_does_not_happen() -> None:
    """A timer may be canceled before and after its time."""
    clock, seen = VirtualClock(), list[int]()
    timer = clock.call_later(5, lambda: seen.append(1))
    timer.cancel()
    clock.run_until(10)
    timer.cancel()
    assert seen == []


def test_a_run_ends_when_its_condition_holds_or_its_time_is_over() -> None:
    """`run_while` says which of the two it was, and does not run past the end."""
    clock, seen = VirtualClock(), list[int]()

    def again() -> None:
        seen.append(clock.now_ms())
        clock.call_later(10, again)

    clock.call_later(10, again)
    assert clock.run_while(lambda: len(seen) < 3, 1_000)
    assert clock.now_ms() == 30
    assert not clock.run_while(lambda: True, 55)
    assert seen == [10, 20, 30, 40, 50]
