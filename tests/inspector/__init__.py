"""Tests of the inspector: pure parts without a broker, and the commands against a real one."""
