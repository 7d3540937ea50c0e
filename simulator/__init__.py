"""Virtual devices that run the agent's own core, and the scenarios to rehearse a rollout with.

Nothing imports it. It holds no rule of an update: those are the agent's and the cloud's, and run here unchanged.
"""
