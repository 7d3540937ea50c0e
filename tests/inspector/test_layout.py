"""What is shown: facts, lines, the sequence, and that no device can write on the reader's terminal."""

from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.core.numbers import after, clock, size, span
from inspector.core.pick import FILTERS_MAX, Pick
from inspector.core.seen import Arrival, decode
from inspector.core.sequence import LANE_CELLS_MIN, Mermaid, Sequence
from inspector.core.summary import facts
from inspector.core.tail import Tail
from inspector.core.text import Piece, escape, join, paint, width, width_of, wrap
from protocol.envelope import TrustedKeys
from protocol.topics import Kind, Topics
from tests.inspector.conversation import DEVICE, HELLO, ORDER, OTHER_KEY, START_MS, arrival, conversation

TOPICS = Topics()
SEEN = [decode(each, TOPICS) for each in conversation()]


def text_of(number: int) -> str:
    """The facts of one message of the conversation, in one row."""
    return paint(join(facts(SEEN[number])), colour=False)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, ["seq 11", "no epoch", "nonce nonce-77"]),
        (1, ["install acme/app:2.0.0", "unverified", "epoch 7", "d-42 attempt 1", "valid 24 h"]),
        (2, ["has seq 11", "newest epoch 7", "echoes nonce-77"]),
        (3, ["downloading", "41 %", "500.0 kB of 1.2 MB"]),
        (
            4,
            [
                "idle",
                "runs acme/app:1.0.0",
                "✗ health_failed in confirming",
                "the update's fault",
                "▸★A good",
                "B bad",
            ],
        ),
        (5, ["within 30 s"]),
        (6, ["last will", "conn-1"]),
    ],
)
def test_each_kind_says_its_key_facts(number: int, said: list[str]) -> None:
    """The facts a reader looks for are there, in this order."""
    places = [text_of(number).find(each) for each in said]
    assert -1 not in places
    assert places == sorted(places)


def test_a_cancel_and_a_bad_signature_are_said_first() -> None:
    """A hold that names an attempt is a cancel; a signature of another key is the first thing to know."""
    cancel = ORDER.model_copy(update={"action": "hold", "target": None})
    seen = decode(arrival(Kind.DESIRED, cancel), TOPICS, TrustedKeys([OTHER_KEY.public_pem]))
    said = paint(join(facts(seen)), colour=False)
    assert said.startswith("✗ BAD SIGNATURE · cancel d-42 attempt 1")


@given(
    st.sampled_from([seen.topic for seen in SEEN]) | st.text(max_size=30),
    st.binary(max_size=200) | st.text().map(str.encode),
)
def test_no_device_can_write_on_the_terminal(topic: str, payload: bytes) -> None:
    """Whatever arrives, in every view, only printable characters come out."""
    seen = decode(Arrival(START_MS, topic, payload), TOPICS)
    rows = [*Tail(UTC, 80).lines(seen), *Sequence(DEVICE, UTC, 80).lines(seen)]
    texts = [paint(row, colour=False) for row in rows] + Mermaid(DEVICE).lines(seen)
    assert all(text.isprintable() for text in texts)


@pytest.mark.parametrize(
    "bad", ["\x00", "\x1b[2J", "\x07", "\x7f", "\x9b31m", "\u202e", "\u2028", "\u200f", "\ue000", "\n"]
)
def test_control_characters_are_escaped(bad: str) -> None:
    """C0, C1, direction marks, separators, private ones: all shown as escapes."""
    assert escape(f"a{bad}b").isprintable()
    assert escape("é 日本 😀") == "é 日本 😀"


@given(
    st.lists(
        st.text(st.characters(min_codepoint=32, max_codepoint=0x3100), min_size=1, max_size=60), max_size=6
    ),
    st.integers(8, 60),
)
def test_wrapping_keeps_every_word_and_every_limit(texts: list[str], cells: int) -> None:
    """No row is wider than asked, and no character is lost."""
    said = [(Piece(escape(text)),) for text in texts]
    rows = wrap(said, cells)
    assert all(width(paint(row, colour=False).rstrip()) <= cells for row in rows)
    shown = "".join(paint(row, colour=False) for row in rows)
    assert shown.replace(" · ", "").replace(" ", "").replace("·", "") == "".join(map(escape, texts)).replace(
        " ", ""
    ).replace("·", "")


@pytest.mark.parametrize("columns", [20, 80, 100, 132, 300])
def test_the_sequences_lanes_are_straight(columns: int) -> None:
    """Every row of the diagram is equally wide, whatever it says."""
    layout = Sequence(DEVICE, UTC, columns)
    bodies = [row for seen in SEEN for row in layout.lines(seen)]
    widths = {width_of(row) for row in bodies}
    assert len(widths) == 1
    assert widths <= {width_of(layout.head()[1])}
    assert columns < LANE_CELLS_MIN + 40 or max(widths) <= columns


def test_the_sequence_shows_ways_and_times() -> None:
    """Up points to the cloud, down to the device, and the time between stands beside."""
    layout = Sequence(DEVICE, UTC, 120)
    rows = [paint(layout.lines(seen)[0], colour=False) for seen in SEEN]
    assert "─▶│" in rows[0]
    assert "│◀─" in rows[1]
    assert "+0.012 s" in rows[1]
    assert "╌▶│" in rows[6]


def test_a_long_silence_is_drawn() -> None:
    """Five seconds and more stand as a break between two messages."""
    layout = Sequence(DEVICE, UTC, 100)
    first = layout.lines(SEEN[0])
    later = layout.lines(decode(arrival(Kind.HELLO, HELLO, START_MS + 65_000), TOPICS))
    assert len(first) < len(later)
    assert "1 min 5 s of silence" in paint(later[0], colour=False)


def test_mermaid_is_escaped() -> None:
    """A semicolon ends a statement there, and a sharp begins an entity."""
    seen = decode(Arrival(START_MS, SEEN[4].topic, b'{"a;#<>'), TOPICS)
    drawing = Mermaid(DEVICE)
    (line,) = drawing.lines(seen)
    assert "a#59;#35;#lt;#gt;" in line
    assert drawing.head()[0] == "sequenceDiagram"


def test_tail_is_one_line_without_a_terminal_and_aligned() -> None:
    """A pipe gets a line for a message; in a terminal what does not fit goes on below itself."""
    assert all(len(Tail(UTC, None).lines(seen)) == 1 for seen in SEEN)
    rows = Tail(UTC, 80).lines(SEEN[4])
    assert len(rows) > 1
    assert all(width_of(row) <= 80 for row in rows)
    assert paint(rows[0], colour=False).startswith(
        f"{clock(SEEN[4].at_ms, UTC)}  pi-17     ▲ state    seq 12"
    )
    assert "\x1b[" in paint(rows[0], colour=True)


@pytest.mark.parametrize(
    ("pick", "kept"),
    [
        (Pick(), 7),
        (Pick(devices=("pi-*",)), 7),
        (Pick(devices=("pi-17", "x")), 7),
        (Pick(devices=("PI-*",)), 1),
        (Pick(kinds=(Kind.HELLO, Kind.ACK)), 2),
        (Pick(devices=("x",), kinds=(Kind.HELLO,)), 0),
    ],
)
def test_pick_keeps_what_was_asked_for(pick: Pick, kept: int) -> None:
    """Globs and kinds; what goes to everyone goes to each device."""
    assert sum(pick.keeps(seen) for seen in SEEN) == kept


@pytest.mark.parametrize(
    ("pick", "filters"),
    [
        (Pick(), ("p/#",)),
        (Pick(devices=("d",), kinds=(Kind.HELLO, Kind.SYNC)), ("p/up/d/hello", "p/down/all/sync")),
        (Pick(devices=("d*",), kinds=(Kind.HELLO,)), ("p/up/+/hello",)),
        (Pick(devices=tuple(f"d{n}" for n in range(FILTERS_MAX))), ("p/#",)),
    ],
)
def test_filters_are_as_narrow_as_is_worth_it(pick: Pick, filters: tuple[str, ...]) -> None:
    """The broker is spared what nobody asked for."""
    assert pick.filters("p") == filters


def test_numbers_are_for_people() -> None:
    """Spans, sizes and times of day."""
    assert [after(12), after(-12), after(6_501), after(200_000)] == [
        "+0.012 s",
        "-0.012 s",
        "+6.501 s",
        "+3 min 20 s",
    ]
    assert [span(30_000), span(3_600_000), span(86_400_000), span(200_000_000)] == [
        "30 s",
        "1 h",
        "24 h",
        "2 d 7 h",
    ]
    assert [size(1), size(1_200_000), size(999_960), size(5 * 10**12)] == [
        "1 B",
        "1.2 MB",
        "1.0 MB",
        "5.0 TB",
    ]
    assert clock(START_MS, UTC).endswith(".123")
