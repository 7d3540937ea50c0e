"""Where the agent touches the world: disk, network, processes.

No rules of an update's life live here (`core` has them).
"""
