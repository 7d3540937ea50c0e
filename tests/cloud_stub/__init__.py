"""Tests of cloud_stub."""
