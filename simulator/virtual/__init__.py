"""The virtual world: the real cloud and the agents' real cores on a clock that moves when nothing is left to do."""
