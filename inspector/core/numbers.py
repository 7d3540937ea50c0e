"""Numbers for people: clock times, spans between messages, sizes and shares.

It is not where anything is measured: every instant comes in as UTC milliseconds.
"""

from datetime import UTC, datetime, tzinfo


def clock(at_ms: int, zone: tzinfo) -> str:
    """Return the time of day, such as `12:01:02.123`."""
    instant = datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(zone)
    return f"{instant:%H:%M:%S}.{at_ms % 1000:03d}"


def after(span_ms: int) -> str:
    """Return the span since the message before, such as `+0.012 s`, `+3 min 20 s` or `+2 h 5 min`."""
    sign = "-" if span_ms < 0 else "+"  # a clock that was set back shows itself
    span_ms = abs(span_ms)
    if span_ms < 60_000:
        return f"{sign}{span_ms // 1000}.{span_ms % 1000:03d} s"
    return sign + span(span_ms)


def span(span_ms: int) -> str:
    """Return a duration in the two units that matter."""
    if span_ms < 60_000:
        return f"{span_ms / 1000:.3g} s"
    seconds = span_ms // 1000
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s" if seconds % 60 else f"{seconds // 60} min"
    minutes = seconds // 60
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"


def size(size_bytes: int) -> str:
    """Return a size in bytes, such as `812 B` or `1.2 MB`."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    number, unit = size_bytes / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if number < 999.95:
            break
        number, unit = number / 1000, larger
    return f"{number:.1f} {unit}"


def many(count: int, singular: str) -> str:
    """Return `1 outcome` or `3 outcomes`."""
    return f"{count} {singular}" if count == 1 else f"{count} {singular}s"
