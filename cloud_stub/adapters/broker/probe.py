"""Asks a broker on loopback one question: do you know this account?

The supervisor puts an account with a fresh random token into every set of accounts it writes, and a broker
that lets it in has read that very set. So a start, and a reload by signal, are known to be done, whatever
the engine logs, and a stranger's broker on the port is never mistaken for ours.
"""

import socket

_TIMEOUT_S = 1.0
_CONNACK_ACCEPTED = b"\x20\x02\x00\x00"


def is_let_in(host: str, port: int, name: str, token: str) -> bool:
    """Whether a broker listens there and accepts this account."""
    try:
        with socket.create_connection((host, port), _TIMEOUT_S) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.sendall(_connect(name, token))
            answer = b""
            while len(answer) < 4 and (more := connection.recv(4 - len(answer))):
                answer += more
            if answer == _CONNACK_ACCEPTED:
                connection.sendall(b"\xe0\x00")  # DISCONNECT
            return answer == _CONNACK_ACCEPTED
    except OSError:
        return False


def can_reach(host: str, port: int) -> bool:
    """Whether anything listens there."""
    try:
        with socket.create_connection((host, port), _TIMEOUT_S):
            return True
    except OSError:
        return False


def _connect(name: str, token: str) -> bytes:
    fields = b"".join(len(text).to_bytes(2) + text for text in (name.encode(), name.encode(), token.encode()))
    body = b"\x00\x04MQTT\x04\xc2\x00\x0a" + fields  # clean session, name and token, keepalive 10 s
    return bytes((0x10, len(body))) + body
