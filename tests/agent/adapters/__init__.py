"""Tests of what the agent does to disk, network and processes: on real files, sockets and processes."""
