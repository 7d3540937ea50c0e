"""The rules of the simulator: what a scenario says, who fails, how long work takes, and what holds at the end."""
