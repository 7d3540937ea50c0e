"""What the cloud touches the world with; each adapter keeps a port of `cloud_stub/ports.py`.

They hold no rules, and never import the orchestrator, the API or the CLI.
"""
