"""Randomness from a seed and names."""

from statistics import median

from protocol.manifest import read_manifest
from simulator.core.chance import SeededChance, fraction, spread_ms
from simulator.core.payload import make
from simulator.core.scenario import UpdatePart


def test_a_stream_is_the_same_for_the_same_seed_and_name_only() -> None:
    """Two devices draw different numbers, and the same device the same ones again."""
    draws = [SeededChance(1, "a").uniform(), SeededChance(1, "a").uniform()]
    assert draws[0] == draws[1]
    assert draws[0] != SeededChance(1, "b").uniform()
    assert draws[0] != SeededChance(2, "a").uniform()
    assert len(SeededChance(1, "a").token()) == 22


def test_fractions_fill_the_range_evenly() -> None:
    """No part of [0, 1) is preferred, and 1 is never reached."""
    drawn = [fraction(5, "device", number) for number in range(2_000)]
    assert 0 <= min(drawn) < 0.01
    assert 0.99 < max(drawn) < 1
    assert 0.46 < median(drawn) < 0.54


def test_durations_lie_around_their_median_and_have_an_end() -> None:
    """Log-normal, cut off beyond three deviations; without spread always the median."""
    chance = SeededChance(1, "durations")
    drawn = [chance.spread_ms(1_000, 0.5) for _ in range(2_000)]
    assert 930 < median(drawn) < 1_070
    assert max(drawn) <= 4_482
    assert spread_ms(1_000, 0.0, 0.3, 0.9) == 1_000
    assert spread_ms(0, 0.5, 0.3, 0.9) == 0


def test_a_made_update_is_valid_and_comes_from_the_seed() -> None:
    """Its manifest reads, and names the bytes that were made."""
    part = UpdatePart(id="acme/app:1.0", size_bytes=1_000, compatibility=[{"model": "one"}])
    made = make(part, 1)
    manifest = read_manifest(made.manifest)
    assert manifest.bytes_total == len(made.content) == 1_000
    assert make(part, 1) == made
    assert make(part, 2).content != made.content
