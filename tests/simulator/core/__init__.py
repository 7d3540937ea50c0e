"""Tests of simulator.core."""
