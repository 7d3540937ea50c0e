"""Tests of the cloud's adapters."""
