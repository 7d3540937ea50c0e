"""Tests with a real broker, real files and real processes, across packages."""
