"""Tests of the orchestrator: real rows in a real store, devices as messages."""
