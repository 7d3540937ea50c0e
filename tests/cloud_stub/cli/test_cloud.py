"""What `lastgood cloud up` refuses before it starts anything; that it starts is shown by tests/integration."""

from pathlib import Path

import pytest

from cloud_stub.adapters.broker.passwords import SALT_BYTES, hash_password
from cloud_stub.adapters.store import open_store
from cloud_stub.cli.cloud import Options, Ports, assemble
from tests.cloud_stub.adapters.store.rows import device
from tests.cloud_stub.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--host", "0.0.0.0"), 1, "give that with --url"),  # noqa: S104  # what is refused
        (("--host", "::"), 1, "give that with --url"),
        (("--url", "updates.example.com"), 1, "write it as http://host:port"),
        (("--url", "ftp://updates.example.com"), 1, "write it as http://host:port"),
        (("--url", "http://[::1"), 1, "write it as http://host:port"),
        (("--url", "http://updates.example.com:http"), 1, "write it as http://host:port"),
        (("--url", "http://updates.example.com/#top"), 1, "write it as http://host:port"),
        (("--port", "70000"), 2, "0<=x<=65535"),
        (("--broker-port", "-1"), 2, "0<=x<=65535"),
        (("--heartbeat", "1e308"), 2, "1<=x<=86400"),
        (("--heartbeat", "nan"), 2, "no number of seconds"),
    ],
)
def test_what_no_device_could_reach_is_refused(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """In one sentence, and before the data folder is made: devices keep the address that they are told."""
    ran = run("cloud", "up", "--data", tmp_path / "data", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert not (tmp_path / "data").exists()


def test_another_brokers_port_is_none_to_take_later(tmp_path: Path) -> None:
    """Only a port that this cloud has chosen is the one of the last run."""
    kept = Ports.load(tmp_path)
    for engine, port, told in (("embedded", 40_000, 40_000), ("external", 8_080, 40_000)):
        kept = kept.after(8_000, port, own=engine != "external")
        kept.save(tmp_path)
        assert Ports.load(tmp_path) == Ports(8_000, told)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Ports.load(fresh).after(8_000, 1_883, own=False).save(fresh)
    assert Ports.load(fresh) == Ports(8_000, None)


def test_a_broker_knows_the_devices_from_its_first_moment(tmp_path: Path) -> None:
    """A cloud that comes back refuses nobody meanwhile: who is refused stays away for a while."""
    told = hash_password("a-token-of-the-test", bytes(SALT_BYTES))
    store = open_store(tmp_path / "cloud.db")
    with store.transaction() as unit:
        unit.put_device(device("pi-1", password_hash=told))
        unit.put_device(device("pi-2", password_hash=""))
    store.close()
    options = Options(tmp_path, "mqtt://127.0.0.1:1", None, "http://127.0.0.1:8080", "lg/v1", 60_000)
    assembly = assemble(options, lambda _: None)
    assert (tmp_path / "broker" / "external.passwd").read_text() == f"pi-1:{told}\n"
    assembly.service.start()
    assembly.service.stop()
