"""Tests, which mirror the packages; `tests/integration` and `tests/scenarios` cross them."""
