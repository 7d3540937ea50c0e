"""The first half of the agent's table: idle, downloading, installing and ready, where an order can still be called off.

It decides nothing about a trial (`trying.py`). It keeps the rules that a slot is untouched until every check has
passed, that a slot whose bytes failed a check keeps no checksum, and that a flip is re-hashed first (R25).
"""

from dataclasses import replace
from functools import lru_cache

from agent.core.model import (
    Activate,
    Commit,
    Download,
    Holds,
    Install,
    Invalidate,
    Prepare,
    Rehash,
    Slot,
    StopWork,
    Workflow,
)
from agent.core.settings import (
    COMMIT_WAIT_FIRST_MS,
    COMMIT_WAIT_MOST_MS,
    DOWNLOAD_WAIT_FIRST_MS,
    DOWNLOAD_WAIT_MOST_MS,
    REFRESH_WAIT_MS,
    backoff,
)
from agent.core.slots import FELL_BACK, NOTHING_WHOLE
from agent.core.steps import (
    Acts,
    Ask,
    Conclude,
    Facts,
    Happening,
    Wait,
    abandoned,
    answer_to,
    begin_revert,
    end,
    failed,
    order_of,
    reason_of,
    slot_of,
    spoil,
    succeeded,
    tagged,
)
from protocol.errors import OperatorError
from protocol.identity import UpdateId
from protocol.lifecycle import WorkflowState as _S
from protocol.manifest import Manifest, read_manifest
from protocol.messages import Assignment
from protocol.outcomes import Abandoned, Reason

# --- idle ------------------------------------------------------------------------------------------------------


def already_there(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The target is booted and committed: nothing is to be done, and that is a success."""
    taken = replace(work, order=order_of(happening))
    return end(taken, succeeded(taken, facts, already_there=True), acts)


def take(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Begin an order: flip when the spare already holds the target, else fetch the manifest."""
    order = order_of(happening)
    if facts.slots.booted != facts.slots.last_known_good:  # a late fall-back is settled first
        return replace(work, next=order)
    spare = facts.slots.spare
    taken = Workflow(order=order, slot=spare, next=work.next, ordinal=work.ordinal)
    held = facts.slots.slots[spare]
    if not _is_whole(held, order):
        return prepare(taken, facts, acts)
    refusal = _refusal(order, held.update or "", held.release_counter, facts)
    if refusal is not None:
        return end(taken, failed(taken, facts, *refusal), acts)
    taken, tag = tagged(replace(taken, state=_S.DOWNLOADING, phase="rehash"), facts)
    acts.append(Rehash(tag, spare))
    return taken


def answer_hold(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Stay idle, and say so; an order that waited for a late fall-back to be settled never begins."""
    acts.append(answer_to(order_of(happening), work, facts, stopped=True))
    return work if work.next is None else replace(work, next=None)


def settle(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Accept what the bootloader fell back to, and tell it of the order in force when that one had succeeded (R18)."""
    slots = facts.slots
    gone = slots.last_known_good
    if slots.booted == gone:
        return work
    # Nobody fell back: a trial runs that the record knows nothing of, or the link was moved to what is no update.
    if slots.running.holds is Holds.TRIAL or slots.running.holds in NOTHING_WHOLE:
        return begin_revert(work, facts, acts, None, Reason.RECORD_LOST)
    work, tag = tagged(work, facts)
    acts.append(Commit(tag, slots.booted))
    order = happening.order
    if order is not None and order.target is not None and order.target.sha256 == slots.slots[gone].sha256:
        detail = f"The device went back to slot {slots.booted} by itself, after the commit."
        acts.append(Conclude(failed(replace(work, order=order), facts, Reason.FELL_BACK, detail)))
    return work


def settled(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """What is booted is last known good now, so that the slot that was left may be marked."""
    if facts.slots.booted == facts.slots.last_known_good:
        acts += [Invalidate(facts.slots.spare, FELL_BACK), Wait(None)]
        return replace(work, tries=0) if work.tries else work
    return settle_later(work, happening, facts, acts)


def settle_later(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The disk refused to settle a late fall-back: try again for ever, with a capped back-off."""
    if facts.slots.booted == facts.slots.last_known_good:
        return settled(work, happening, facts, acts)
    tries = work.tries + 1
    acts.append(Wait(backoff(tries, COMMIT_WAIT_FIRST_MS, COMMIT_WAIT_MOST_MS, facts.chance.uniform())))
    return replace(work, tries=tries)


# --- downloading and installing --------------------------------------------------------------------------------


def prepare(work: Workflow, facts: Facts, acts: Acts) -> Workflow:
    """Fetch the manifest of the order in work; the slot is not touched yet."""
    work, tag = tagged(replace(work, state=_S.DOWNLOADING, phase="manifest"), facts)
    acts.append(Prepare(tag, order_of(work)))
    return work


def adopt(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Go on under the new attempt; what is in hand, its starts and its soak stay (R16). At the gate, ask again."""
    acts.append(Conclude(abandoned(work, facts, Abandoned.RETRIED)))
    if work.state is _S.READY and not work.phase:
        acts.append(Ask())
    return replace(work, order=order_of(happening), refreshed=False)


def stop_for_other(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Stop, and give way to another target."""
    _drop(work, facts, acts)
    return _replaced(work, happening, facts, acts)


def stop_for_hold(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Stop, and stay on what runs."""
    _drop(work, facts, acts)
    return _canceled(work, happening, facts, acts)


def prepared(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Hold the manifest against the device; only then begin the slot and fetch the files."""
    order = order_of(work)
    data = happening.manifest or b""
    try:
        manifest = _read(data)
    except OperatorError as error:
        return end(work, failed(work, facts, Reason.UNSUPPORTED, str(error)), acts)
    refusal = _manifest_refusal(order, manifest, facts) or _refusal(
        order, str(manifest.update), manifest.release_counter, facts
    )
    if refusal is not None:
        return end(work, failed(work, facts, *refusal), acts)
    return _fetch(work, data, facts, acts, fresh=work.refetched)


def downloaded(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Carry out the steps into the slot."""
    work, tag = tagged(replace(work, state=_S.INSTALLING, phase=""), facts)
    acts.append(Install(tag, order_of(work), facts.manifest or b"", slot_of(work, facts)))
    return work


def download_failed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Ask for new addresses once, back off while the budget lasts, else fail by the fault of whom it was."""
    reason = reason_of(happening, Reason.NETWORK)
    if happening.refresh and not work.refreshed:
        acts += [Ask(addresses=True), Wait(REFRESH_WAIT_MS)]
        return replace(work, refreshed=True)
    if happening.refresh:
        reason = Reason.SERVER
    elif happening.transient and work.tries + 1 < facts.settings.download_tries_max:
        tries = work.tries + 1
        delay_ms = backoff(tries, DOWNLOAD_WAIT_FIRST_MS, DOWNLOAD_WAIT_MOST_MS, facts.chance.uniform())
        acts.append(Wait(delay_ms))
        return replace(work, tries=tries)
    if work.phase == "files":
        spoil(work, facts, acts, None)
    return end(work, failed(work, facts, reason, happening.detail), acts)


def try_again(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """A back-off is over: go on where the transfer broke off."""
    if work.phase == "rehash":
        return work
    if work.phase == "files" and facts.manifest is not None:
        return _fetch(work, facts.manifest, facts, acts, fresh=False)
    return prepare(work, facts, acts)


def verify_failed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Bytes differ from their sha256: fetch once more from zero; the second time fails, by the server's fault."""
    if work.phase == "rehash":
        return _decayed(work, happening, facts, acts)
    if not work.refetched:
        work = replace(work, refetched=True, state=_S.DOWNLOADING)
        if work.phase == "manifest" or facts.manifest is None:
            return prepare(work, facts, acts)
        return _fetch(work, facts.manifest, facts, acts, fresh=True)
    if work.phase != "manifest":
        spoil(work, facts, acts, Reason.VERIFY_FAILED)
    return end(work, failed(work, facts, Reason.VERIFY_FAILED, happening.detail), acts)


def install_failed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """A step failed: the slot is bad, without a checksum to be taken for whole by."""
    reason = reason_of(happening, Reason.HANDLER_FAILED)
    spoil(work, facts, acts, reason)
    return end(work, failed(work, facts, reason, happening.detail), acts)


# --- ready -----------------------------------------------------------------------------------------------------


def become_ready(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The spare is sealed and whole: ask the cloud whether the order still stands (R4)."""
    if work.state is _S.DOWNLOADING and work.phase != "rehash":
        return work
    acts.append(Ask())
    return replace(work, state=_S.READY, phase="", tries=0)


def recheck(work: Workflow, facts: Facts, acts: Acts) -> Workflow:
    """Hold a slot sealed in an earlier start against its manifest, before the gate is asked (R25)."""
    work, tag = tagged(replace(work, state=_S.READY, phase="rehash"), facts)
    acts.append(Rehash(tag, slot_of(work, facts)))
    return work


def ready_for_other(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Give way to another target; the spare stays sealed until its begin."""
    _stop_recheck(work, acts)
    return _replaced(work, happening, facts, acts)


def ready_for_hold(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Stay on what runs; the spare stays sealed."""
    _stop_recheck(work, acts)
    return _canceled(work, happening, facts, acts)


def switch(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Pass the point of no return (R5); not while the slot is still being checked."""
    if work.phase == "rehash":
        return work
    order = order_of(work)
    work, tag = tagged(replace(work, state=_S.SWITCHING), facts)
    acts.append(Activate(tag, slot_of(work, facts), order.trial_starts or facts.settings.trial_starts))
    return work


# --- helpers ---------------------------------------------------------------------------------------------------


def _fetch(work: Workflow, manifest: bytes, facts: Facts, acts: Acts, *, fresh: bool) -> Workflow:
    work, tag = tagged(replace(work, state=_S.DOWNLOADING, phase="files"), facts)
    acts.append(Download(tag, order_of(work), manifest, slot_of(work, facts), fresh))
    return work


def _decayed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    spoil(work, facts, acts, "decayed")
    if work.refetched:
        return end(work, failed(work, facts, Reason.VERIFY_FAILED, happening.detail), acts)
    return prepare(replace(work, refetched=work.state is _S.READY), facts, acts)


def _drop(work: Workflow, facts: Facts, acts: Acts) -> None:
    acts.append(StopWork())
    if work.state is _S.INSTALLING or work.phase == "files":
        spoil(work, facts, acts, None)


def _stop_recheck(work: Workflow, acts: Acts) -> None:
    if work.phase == "rehash":
        acts.append(StopWork())


def _replaced(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    return replace(end(work, abandoned(work, facts, Abandoned.REPLACED), acts), next=order_of(happening))


def _canceled(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    acts.append(answer_to(order_of(happening), work, facts, stopped=True))
    return end(work, abandoned(work, facts, Abandoned.CANCELED), acts)


def _is_whole(held: Slot, order: Assignment) -> bool:
    wanted = order.target.sha256 if order.target else None
    return held.holds in {Holds.SEALED, Holds.GOOD} and held.sha256 is not None and held.sha256 == wanted


def _manifest_refusal(order: Assignment, manifest: Manifest, facts: Facts) -> tuple[Reason, str] | None:
    if order.target is not None and str(manifest.update) != order.target.update:
        return Reason.SERVER, f"The order names {order.target.update}, and its manifest {manifest.update}."
    if not manifest.fits(facts.properties):
        return (
            Reason.INCOMPATIBLE,
            f"{manifest.update} is for other devices: none of its compatibility sets fits this one.",
        )
    handlers = facts.settings.handlers
    missing = (
        sorted({step.handler_name for step in manifest.steps} - handlers) if handlers is not None else []
    )
    if missing:
        return (
            Reason.UNSUPPORTED,
            f"{manifest.update} needs the handler {missing[0]!r}, which this device does not have.",
        )
    return None


def _refusal(order: Assignment, update: str, release_counter: int, facts: Facts) -> tuple[Reason, str] | None:
    """The checks that need no manifest, so that a flip passes them too: version and release counter."""
    if release_counter < facts.floor:
        return (
            Reason.BELOW_FLOOR,
            f"{update} has the release counter {release_counter}, and the floor is {facts.floor}.",
        )
    if not order.allow_downgrade and _is_older(update, facts.slots.running.update):
        return (
            Reason.DOWNGRADE_REFUSED,
            f"{update} is older than {facts.slots.running.update}, and the order does not allow that.",
        )
    return None


def _is_older(update: str, running: str | None) -> bool:
    try:
        new, old = UpdateId.parse(update), UpdateId.parse(running or "")
    except OperatorError:
        return False  # nothing runs yet, or it bears no name of ours: there is no order to compare by
    return (new.provider, new.name) == (old.provider, old.name) and new.version < old.version


@lru_cache(maxsize=8)  # a fleet in one process reads the same few manifests again and again
def _read(data: bytes) -> Manifest:
    return read_manifest(data)
