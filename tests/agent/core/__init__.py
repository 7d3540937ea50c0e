"""Tests of the agent's rules, without a disk, a clock or a network."""
