"""Tests of the API, the pages and the repository."""
