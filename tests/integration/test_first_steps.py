"""What a newcomer sees first: the greeting of `lastgood cloud up`, and the one command that it tells for a device."""

import shlex

from protocol.join import decode_join
from tests.processes import Cloud, run_lastgood
from tests.waiting import until


def test_the_greeting_tells_where_everything_is_and_how_a_device_is_added(a_cloud: Cloud) -> None:
    """The command of the last line, with an id in its place, prints the one line to run on that device."""
    until(lambda: "Add a device" in a_cloud.log, "the greeting")
    greeting = a_cloud.log.splitlines()
    told = {line.split()[0]: line.split()[1] for line in greeting if " " in line}
    base = str(a_cloud.http.base_url).rstrip("/") if a_cloud.http else ""
    assert told["pages"].startswith(f"{base}/login?code=")
    assert told["API"] == f"{base}/api/v1"
    assert told["broker"].startswith("mqtt://127.0.0.1:")
    assert told["data"] == str(a_cloud.data)
    (add,) = (line for line in greeting if line.startswith("Add a device with:  lastgood "))
    words = shlex.split(add.partition("lastgood ")[2].replace(" ID ", " pump-1 "))
    added = run_lastgood(*words)
    assert added.returncode == 0, added.stderr
    run = shlex.split(added.stdout.strip().splitlines()[-1])
    assert run[:4] == ["lastgood", "agent", "run", "--join"]
    join = decode_join(run[4])
    assert (join.device, join.broker) == ("pump-1", told["broker"])
