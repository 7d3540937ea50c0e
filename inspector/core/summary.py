"""What a message says, as a handful of short facts for a person; one function for each kind.

It is not a second decoder: it reads the models of `protocol`. It keeps the rule that the first fact is the
one that a reader looks for, and that a complaint always comes before everything else.
"""

from collections.abc import Callable, Mapping
from typing import Final, cast

from inspector.core.numbers import many, size, span
from inspector.core.seen import Complaint, Seen, Trust
from inspector.core.text import Piece, Pieces, Role, escape
from protocol.lifecycle import WorkflowState
from protocol.messages import (
    Ack,
    Assignment,
    Gone,
    Hello,
    Message,
    OutcomeReport,
    Progress,
    SlotReport,
    State,
    Sync,
)
from protocol.outcomes import Result, fault_of
from protocol.topics import RULES, Direction, Kind

NONCE_CHARACTERS: Final = 8  # shown of a nonce, a digest, an instance: enough to see that two are the same


def facts(seen: Seen) -> list[Pieces]:
    """Return the facts of a message, each a row of pieces, complaints first."""
    result = [_complaint(complaint) for complaint in seen.complaints]
    if seen.message is not None and seen.kind is not None:
        first, *others = _FACTS[seen.kind](seen.message)
        result += [first, *([(_TRUST[seen.trust],)] if seen.trust else []), *others]
    elif seen.payload is None:
        result += [(Piece(seen.excerpt or "no bytes", Role.DIM),)]
    return result


def arrow(seen: Seen) -> Piece:
    """Return the sign of the message's way: up to the cloud, down to the device, or unknown."""
    if seen.kind is None:
        return Piece("?", Role.BAD)
    if RULES[seen.kind].direction is Direction.UP:
        return Piece("▲", Role.UP)
    return Piece("▼", Role.DOWN)


def short(text: str) -> str:
    """Return the beginning of a nonce, a digest or an instance."""
    return escape(text[:NONCE_CHARACTERS])


def _complaint(complaint: Complaint) -> Pieces:
    if complaint.reason == "signature":
        return (Piece("✗ BAD SIGNATURE", Role.BAD),)
    return (Piece(f"✗ {escape(complaint.reason)}: {escape(complaint.sentence).removesuffix('.')}", Role.BAD),)


_TRUST: Final[Mapping[Trust, Piece]] = {
    Trust.UNVERIFIED: Piece("unverified", Role.WARN),
    Trust.VERIFIED: Piece("verified", Role.GOOD),
    Trust.BAD_SIGNATURE: Piece("not to be believed", Role.BAD),
}


def _plain(text: str, role: Role = Role.PLAIN) -> Pieces:
    return (Piece(escape(text), role),)


def _hello(hello: Hello) -> list[Pieces]:
    result = [_plain(f"seq {hello.sequence}"), _epoch(hello.epoch)]
    if hello.nonce:
        result.append(_plain(f"nonce {short(hello.nonce)}"))
    result.append(_plain(f"digest {short(hello.digest)}", Role.DIM))
    result.append(_plain(f"instance {short(hello.instance)}", Role.DIM))
    if hello.wants_addresses:
        result.append(_plain("wants addresses", Role.WARN))
    if hello.proof:
        result.append(_plain("brings its signed order", Role.WARN))
    if hello.refused_count:
        result.append(_plain(f"refused {many(hello.refused_count, 'message')}", Role.WARN))
    return result


def _state(state: State) -> list[Pieces]:
    result = [_plain(f"seq {state.sequence}"), _work(state)]
    runs = escape(state.running.update) if state.running else "nothing known"
    result.append((Piece("runs "), Piece(runs, Role.STRONG)))
    result += [_outcome(outcome) for outcome in state.outcomes]
    if state.outcomes_folded:
        result.append(_plain(f"{many(state.outcomes_folded, 'older outcome')} folded", Role.WARN))
    if state.answer:
        result.append(_plain(f"answers {state.answer.answer.replace('_', ' ')}", Role.WARN))
    result += [_slot(name, report, state) for name, report in sorted(state.slots.items())]
    result.append(_epoch(state.epoch))
    if "group" in state.tags:
        result.append(_plain(f"group {state.tags['group']}", Role.DIM))
    if state.minimal:
        result.append(_plain("minimal", Role.WARN))
    return result


def _work(state: State) -> Pieces:
    role = Role.DIM if state.work.state is WorkflowState.IDLE else Role.STRONG
    if state.work.stuck:
        return (Piece(state.work.state, Role.BAD), Piece(f" stuck: {escape(state.work.stuck)}", Role.BAD))
    return (Piece(state.work.state, role),)


def _outcome(outcome: OutcomeReport) -> Pieces:
    attempt = f" {_attempt(outcome.deployment, outcome.attempt)}"
    if outcome.result is Result.SUCCEEDED:
        there = " (already there)" if outcome.already_there else ""
        return (Piece(f"✓ succeeded{there}", Role.GOOD), Piece(attempt, Role.DIM))
    if outcome.result is Result.ABANDONED:
        why = f" ({outcome.abandoned})" if outcome.abandoned else ""
        return (Piece(f"∅ abandoned{why}", Role.WARN), Piece(attempt, Role.DIM))
    if outcome.reason is None:
        return (Piece("✗ failed, and does not say why", Role.BAD), Piece(attempt, Role.DIM))
    fault = fault_of(
        outcome.reason, outcome.phase, reach_ms=outcome.reach_ms, reach_limit_ms=outcome.reach_limit_ms
    )
    detail = f": {escape(outcome.detail)}" if outcome.detail else ""
    return (
        Piece(f"✗ {outcome.reason} in {outcome.phase}", Role.BAD),
        Piece(f" (the {fault}'s fault){detail}"),
        Piece(attempt, Role.DIM),
    )


def _slot(name: str, report: SlotReport, state: State) -> Pieces:
    marks = ("▸" if state.booted == name else "") + ("★" if state.last_known_good == name else "")
    starts = (
        f" ({report.starts_left} left)" if report.starts_left is not None and report.holds == "trial" else ""
    )
    reason = f" ({escape(report.reason)})" if report.reason and report.holds == "bad" else ""
    role = {"trial": Role.WARN, "bad": Role.BAD}.get(report.holds, Role.DIM)
    return (Piece(f"{marks}{name} ", Role.DIM), Piece(f"{report.holds}{starts}{reason}", role))


def _progress(progress: Progress) -> list[Pieces]:
    result = [_plain(progress.phase, Role.STRONG)]
    if progress.bytes_total:
        share = 100 * progress.bytes_done // progress.bytes_total
        result.append(_plain(f"{share} %"))
        result.append(_plain(f"{size(progress.bytes_done)} of {size(progress.bytes_total)}"))
    result.append(_plain(_attempt(progress.deployment, progress.attempt), Role.DIM))
    return result


def _gone(gone: Gone) -> list[Pieces]:
    return [_plain("last will", Role.WARN), _plain(f"connection {short(gone.connection)} ended")]


def _assignment(order: Assignment) -> list[Pieces]:
    if order.action == "hold":
        what: Pieces = (Piece("hold", Role.STRONG),)
        if order.deployment is not None and order.attempt is not None:
            what = (Piece("cancel", Role.STRONG), Piece(f" {_attempt(order.deployment, order.attempt)}"))
        return [what, _epoch(order.epoch), *_echo(order.nonce)]
    target = escape(order.target.update) if order.target else "no target"
    result: list[Pieces] = [(Piece("install "), Piece(target, Role.STRONG)), _epoch(order.epoch)]
    if order.deployment is not None and order.attempt is not None:
        result.append(_plain(_attempt(order.deployment, order.attempt)))
    if order.allow_downgrade:
        result.append(_plain("downgrade allowed", Role.WARN))
    if order.offline_ok:
        result.append(_plain("offline ok", Role.WARN))
    result += _echo(order.nonce)
    if order.target:
        result.append(_plain(f"manifest {short(order.target.sha256)}", Role.DIM))
    result.append(_plain(f"valid {span(order.lifetime_ms)}", Role.DIM))
    return result


def _ack(ack: Ack) -> list[Pieces]:
    result = [
        _plain(f"has seq {ack.sequence}"),
        (Piece("newest "), *_epoch(ack.newest_epoch)),
        *_echo(ack.nonce),
    ]
    if ack.refused:
        result.insert(0, _plain(f"✗ refused: {ack.refused}", Role.BAD))
    result.append(_plain(f"digest {short(ack.digest)}" if ack.digest else "no digest", Role.DIM))
    if ack.heartbeat_ms is not None:
        result.append(_plain(f"heartbeat {span(ack.heartbeat_ms)}", Role.DIM))
    if ack.reconnect_spread_ms is not None:
        result.append(_plain(f"reconnect within {span(ack.reconnect_spread_ms)}", Role.DIM))
    return result


def _sync(sync: Sync) -> list[Pieces]:
    return [_plain(f"everyone, say hello within {span(sync.window_ms)}")]


def _epoch(epoch: int | None) -> Pieces:
    return _plain("no epoch", Role.WARN) if epoch is None else _plain(f"epoch {epoch}")


def _echo(nonce: str | None) -> list[Pieces]:
    return [_plain(f"echoes {short(nonce)}", Role.GOOD)] if nonce else []


def _attempt(deployment: str, attempt: int) -> str:
    return f"{escape(deployment)} attempt {attempt}"


_FACTS: Final = cast(
    Mapping[Kind, Callable[[Message], list[Pieces]]],
    {
        Kind.HELLO: _hello,
        Kind.STATE: _state,
        Kind.PROGRESS: _progress,
        Kind.GONE: _gone,
        Kind.DESIRED: _assignment,
        Kind.ACK: _ack,
        Kind.SYNC: _sync,
    },
)
