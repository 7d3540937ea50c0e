"""Tests of the contract: round trips, refusals, and the two tables pair by pair."""
