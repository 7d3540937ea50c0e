"""Tests of the cloud's pure rules."""
