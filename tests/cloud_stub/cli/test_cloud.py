"""What `lastgood cloud up` refuses before it starts anything; that it starts is shown by tests/integration."""

from pathlib import Path

import pytest

from tests.cloud_stub.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--host", "0.0.0.0"), 1, "give that with --url"),  # noqa: S104  # what is refused
        (("--host", "::"), 1, "give that with --url"),
        (("--url", "updates.example.com"), 1, "write it as http://host:port"),
        (("--url", "ftp://updates.example.com"), 1, "write it as http://host:port"),
        (("--url", "http://[::1"), 1, "write it as http://host:port"),
        (("--port", "70000"), 2, "0<=x<=65535"),
        (("--broker-port", "-1"), 2, "0<=x<=65535"),
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
