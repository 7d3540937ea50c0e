"""The rules of the agent: values in, values out. No clock, no disk, no network, no randomness of its own."""
