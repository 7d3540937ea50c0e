"""Tests of the cloud's brokers."""
