"""The contract between devices and cloud: bytes and values in, values out, no I/O.

It is not a client or a server. It keeps one rule: what two sides must agree on is defined here once.
"""
