"""The virtual world: the real cloud and the agents' real cores on one clock that only moves when nothing is left to do."""
