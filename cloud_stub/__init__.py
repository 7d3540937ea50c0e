"""The update service: it follows every device, and takes a group back when a rollback policy trips.

It never imports the agent. The rules are in `core`, pure; `adapters` touch the world; `orchestrator` feeds one to the
other; `api` and `cli` are how people and programs ask.
"""
