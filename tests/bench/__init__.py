"""Measurements beside floors; `make bench` runs them."""
