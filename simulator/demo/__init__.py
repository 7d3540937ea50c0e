"""The demo: a story on real processes, told line by line, that asserts what it tells.

It is not a test suite and holds no rules: it starts a cloud, a virtual fleet and real agents, types the commands that
a user would type, and waits for facts with a deadline. What it started it ends.
"""
