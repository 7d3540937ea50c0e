"""The cloud's own keys and tokens: made once, kept, and never replaced by new ones in silence."""

import secrets
from pathlib import Path

import pytest

from cloud_stub.adapters.keys import Secrets, load_or_make
from protocol.errors import ServiceError


def load(folder: Path) -> Secrets:
    """Read or make the secrets of a folder with real randomness."""
    return load_or_make(folder, secrets.token_bytes, lambda: secrets.token_urlsafe(20))


def test_they_are_made_once(tmp_path: Path) -> None:
    """The second start reads what the first one made."""
    made, again = load(tmp_path), load(tmp_path)
    assert (made.director.public_pem, made.cloud_token) == (again.director.public_pem, again.cloud_token)


def test_a_directors_key_that_is_lost_is_never_replaced_in_silence(tmp_path: Path) -> None:
    """With another key every device would refuse every order, and the cloud would say nothing."""
    load(tmp_path)
    (tmp_path / "director.pem").unlink()
    with pytest.raises(ServiceError, match="Restore them from a backup"):
        load(tmp_path)
