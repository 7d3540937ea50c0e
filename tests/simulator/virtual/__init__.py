"""Tests of simulator.virtual."""
