"""The text that a new device is given."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.adapters.mqtt import Broker
from protocol.envelope import DirectorKey, TrustedKeys
from protocol.errors import OperatorError
from protocol.join import Join, broker_url, decode_join, encode_join

KEY = DirectorKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
JOIN = Join(
    broker="mqtt://10.0.0.1:1883", device="pi-1", token="t" * 27, keys_pem=(KEY.public_pem,), prefix="lg/v1"
)


def test_it_is_read_as_it_was_written() -> None:
    """encode and decode are inverses, and the keys in it are good for verifying."""
    assert decode_join(encode_join(JOIN)) == JOIN
    assert decode_join(f"  {encode_join(JOIN)}\n") == JOIN
    TrustedKeys(decode_join(encode_join(JOIN)).keys_pem)


def test_it_is_one_word_for_a_shell() -> None:
    """Nothing in it needs quotes, and it does not begin like an option."""
    text = encode_join(JOIN)
    assert all(char.isascii() and (char.isalnum() or char in "-_") for char in text)
    assert text[0] not in "-_"


@pytest.mark.parametrize("damage", ["", "x", "!!", "e30", "W10", "a" * 20_000])
def test_a_damaged_text_is_refused(damage: str) -> None:
    """One sentence that says what to do."""
    with pytest.raises(OperatorError, match=r"--join"):
        decode_join(damage)


def test_a_text_cut_short_is_refused() -> None:
    """Wherever a terminal or a chat cut it."""
    text = encode_join(JOIN)
    for length in range(0, len(text), 7):
        with pytest.raises(OperatorError):
            decode_join(text[:length])


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("v", 2, "another version"),
        ("device", "a b", "'device'"),
        ("broker", "http://x", "'broker'"),
        ("token", "", "'token'"),
        ("keys_pem", [], "'keys_pem'"),
        ("keys_pem", ["-----BEGIN PRIVATE KEY-----\nx"], "'keys_pem"),
        ("prefix", "a//b", "'prefix'"),
        ("prefix", "a/#", "'prefix'"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, sentence: str) -> None:
    """Each field is checked before anything is written to the device."""
    fields = {**JOIN.model_dump(mode="json"), field: value}
    text = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
    with pytest.raises(OperatorError, match=sentence):
        decode_join(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "broker.example.com", "::1", "fe80::1:2"])
def test_a_brokers_address_is_read_as_it_was_meant(host: str) -> None:
    """By the agent, which is told it, and with an address of IPv6, too."""
    assert Broker(broker_url(host, 2883), "pi-1", "t").address() == (host, 2883, False)
