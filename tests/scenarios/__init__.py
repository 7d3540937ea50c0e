"""Whole fleets under a virtual clock, in one thread."""
