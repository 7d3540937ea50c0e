"""Tokens and hashes."""

import base64
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from cloud_stub.adapters.broker.passwords import SALT_BYTES, hash_password, is_hash, new_token, verify

SALT = b"s" * SALT_BYTES


def test_hash_is_mosquittos_form() -> None:
    """`$7$iterations$salt$hash`, PBKDF2-SHA512, as computed here by hand."""
    digest = hashlib.pbkdf2_hmac("sha512", b"token", SALT, 5)
    expected = f"$7$5${base64.b64encode(SALT).decode()}${base64.b64encode(digest).decode()}"
    assert hash_password("token", SALT, 5) == expected


def test_verify_takes_what_mosquittos_own_tool_wrote(tmp_path: Path) -> None:
    """A hash made by mosquitto_passwd verifies here."""
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed: run `apt-get install mosquitto`")
    path = tmp_path / "passwd"
    subprocess.run([tool, "-b", "-c", path, "dev-1", "token"], check=True, capture_output=True)
    stored = path.read_text().strip().partition(":")[2]
    assert verify("token", stored)
    assert not verify("other", stored)


def test_verify() -> None:
    """Only the token itself verifies; every salt gives another hash."""
    stored = hash_password("token", SALT)
    assert verify("token", stored)
    assert not verify("Token", stored)
    assert not verify("", stored)
    assert stored != hash_password("token", b"t" * SALT_BYTES)


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "token",
        "$7$1$c2FsdA==",
        "$6$1$c2FsdA==$aGFzaA==",
        "$7$x$c2FsdHNhbHRzYWx0$aGFzaA==",
        "$7$1$c2FsdHNhbHRzYWx0$aGFzaA==",
        "$7$1$***$***",
        "$7$999999999$" + hash_password("t", SALT).split("$", 3)[3],
        hash_password("t", SALT) + "\nevil:" + hash_password("t", SALT),
        hash_password("t", SALT) + ":",
    ],
)
def test_what_is_no_hash_verifies_nothing(stored: str) -> None:
    """A damaged hash lets nobody in, and one that could add a line to the file is none."""
    assert not verify("t", stored)
    assert not is_hash(stored)


def test_new_token_holds_160_bits() -> None:
    """The token is the random bytes, all of them, in a form that a command line takes."""
    asked: list[int] = []

    def random(count: int) -> bytes:
        asked.append(count)
        return b"\xff" * count

    token = new_token(random)
    assert asked == [20]
    assert base64.b32decode(token.upper()) == b"\xff" * 20
    assert token.isalnum()


@pytest.mark.parametrize(("salt", "iterations"), [(b"short", 1), (SALT, 0), (SALT, 10**9)])
def test_hash_refuses_what_mosquitto_could_not_read(salt: bytes, iterations: int) -> None:
    """Wrong salts and iterations are refused when the hash is made."""
    with pytest.raises(ValueError, match=r"salt|iterations"):
        hash_password("t", salt, iterations)
