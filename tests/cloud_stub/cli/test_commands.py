"""The operator's commands against a served cloud: what they do, what they say, and how they end."""

import json
import threading
from pathlib import Path

import pytest

from cloud_stub.api.access import Role
from cloud_stub.core.commands import AddDevices
from cloud_stub.core.rows import AssignmentState
from protocol.outcomes import Party, Reason
from tests.cloud_stub.api import samples
from tests.cloud_stub.api.fakes import DirectService
from tests.cloud_stub.api.server import TOKENS
from tests.cloud_stub.cli.conftest import Run

POLICY = ("--failed-percent", "10", "--failed-count", "5", "--rollback-to", samples.ONE)


@pytest.fixture
def ids(service: DirectService) -> list[str]:
    """Have twenty devices on version 1, and version 2 imported."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    return samples.fleet(service, "north", 20, one)


def test_a_device_is_added_with_its_line(ask: Run) -> None:
    """The line is printed once; adding again is refused with what to do."""
    added = ask("device", "add", "pump-1", "pump-2")
    assert added.code == 0
    assert added.out.count("lastgood agent run --join") == 2
    again = ask("device", "add", "pump-1")
    assert (again.code, again.out) == (1, "")
    assert "--renew" in again.err
    assert ask("device", "add", "pump-1", "--renew", "--json").json[0]["device"] == "pump-1"


def test_devices_and_groups_are_shown(ask: Run, ids: list[str]) -> None:
    """Tables for people; `--json` is the API's own object."""
    listed = ask("device", "list", "--group", "north")
    assert listed.out.count("acme/pump:1.0") == 20
    assert [row["id"] for row in ask("device", "list", "--json").json] == ids
    assert [row["id"] for row in ask("device", "list", "--runs", "acme/pump:1.0", "--json").json] == ids
    withdrawn = ask("update", "withdraw", "acme/pump:2.0", "--why", "old").out
    assert withdrawn.endswith("Devices that run it, and stay as they are: 0\n")
    withdrawn = ask("update", "withdraw", "acme/pump:1.0", "--why", "old").out
    assert withdrawn.endswith("stay as they are: 20 (lastgood device list --runs acme/pump:1.0)\n")
    shown = ask("device", "show", ids[0])
    assert "last known good" in shown.out
    assert ask("device", "show", ids[0], "--json").json["slots"][0]["booted"] is True
    assert "acme/pump:1.0 (20)" in ask("group", "list").out
    assert "manufacturer=acme, model=pump" in ask("group", "show", "north").out
    assert ask("device", "why", ids[0]).out.strip()


def test_lists_are_read_page_by_page(ask: Run, service: DirectService) -> None:
    """More devices than one answer holds are all listed."""
    service.do(AddDevices({f"many-{number:04}": "hash" for number in range(1_001)}), "tester")
    assert len(ask("device", "list", "--group", "$default", "--json").json) == 1_001


def test_a_device_is_moved_and_given_back(ask: Run, ids: list[str]) -> None:
    """Either a group or `--by-tag`, and never both or none."""
    assert "is in group south (by override)" in ask("device", "move", ids[0], "south").out
    assert "is in group $default (by default)" in ask("device", "move", ids[0], "--by-tag").out
    assert ask("device", "move", ids[0]).code == 2
    assert ask("device", "move", ids[0], "south", "--by-tag").code == 2
    assert ask("device", "move", "unknown", "south").code == 1


def test_updates_are_imported_listed_and_withdrawn(ask: Run, tmp_path: Path) -> None:
    """From the manifest's folder or another; what is missing or differs is named before anything is sent."""
    manifest, files = tmp_path / "m.json", tmp_path / "files"
    manifest.write_bytes(samples.manifest("1.0"))
    files.mkdir()
    missing = ask("update", "import", manifest)
    assert missing.code == 1
    assert "'app.tar' of the manifest is not in" in missing.err
    (files / "app.tar").write_bytes(b"short")
    assert "has 5 bytes, and the manifest says" in ask("update", "import", manifest, "--files", files).err
    (files / "app.tar").write_bytes(samples.payload("1.0")[::-1])
    assert "is not what the manifest says" in ask("update", "import", manifest, "--files", files).err
    (files / "app.tar").write_bytes(samples.payload("1.0"))
    assert ask("update", "import", manifest, "--files", files).code == 0
    (files / "app.tar").unlink()
    assert ask("update", "import", manifest).code == 0  # stored already: nothing has to be sent
    assert samples.ONE in ask("update", "list").out
    assert "app.tar" in ask("update", "show", samples.ONE).out
    withdrawn = ask("update", "withdraw", samples.ONE, "--why", "it eats batteries")
    assert (withdrawn.code, withdrawn.out.splitlines()[1]) == (
        0,
        "Devices that run it, and stay as they are: 0",
    )
    assert "it eats batteries" in ask("update", "show", samples.ONE).out
    assert f"No device runs {samples.ONE}." in ask("device", "list", "--runs", samples.ONE).out
    assert "cannot be read" in ask("update", "import", tmp_path / "none.json").err


def test_a_plan_changes_nothing_and_create_makes_it(ask: Run, ids: list[str]) -> None:
    """The plan has the arithmetic; without a person to ask, `--yes` is needed."""
    plan = ask("deploy", "plan", "north", samples.TWO, *POLICY)
    assert "with 20 compatible members that is 5 failed" in plan.out
    assert ask("deploy", "list", "--json").json == []
    nobody = ask("deploy", "create", "north", samples.TWO, *POLICY)
    assert nobody.code == 2
    assert "--yes" in nobody.err
    made = ask("deploy", "create", "north", samples.TWO, *POLICY, "--yes")
    assert "lastgood deploy watch d1" in made.out
    assert "0 of 20 failed (0.0 %); goes back at 5." in ask("deploy", "show", "d1").out
    assert len(ask("deploy", "show", "d1", "--devices", "--json").json["devices"]) == 20
    assert ask("deploy", "list", "--state", "canceled", "--json").json == []
    assert [
        row["id"] for row in ask("deploy", "list", "--group", "north", "--state", "active", "--json").json
    ] == ["d1"]


@pytest.mark.parametrize("left_out", [0, 2, 4])
def test_a_policy_that_lacks_a_number_is_refused(ask: Run, ids: list[str], left_out: int) -> None:
    """Before anything is sent, with the name of what is missing."""
    given = POLICY[:left_out] + POLICY[left_out + 2 :]
    for command in ("plan", "create"):
        refused = ask(
            "deploy", command, "north", samples.TWO, *given, *(["--yes"] if command == "create" else [])
        )
        assert refused.code == 2
        assert f"The policy lacks {POLICY[left_out]}" in refused.err
    assert ask("deploy", "plan", "north", samples.TWO, "--match", "any").code == 2


def test_every_option_of_a_draft_acts(ask: Run, ids: list[str], service: DirectService) -> None:
    """Each is found in the deployment that it made."""
    samples.imported(service, "1.0", "valve")
    options = ("--update", "acme/valve:1.0", "--match", "any", "--percent-of", "attempted", "--at", "+30m",
               "--retries", "2", "--retry-delay", "5s", "--device-timeout", "10m", "--attempt-timeout", "1d",
               "--allow-downgrade", "--rollback-to", "acme/pump:3.0")  # fmt: skip
    samples.imported(service, "3.0")
    before = service.now_ms()
    made = ask("deploy", "create", "north", samples.TWO, *POLICY, *options, "--yes", "--json").json
    assert [ref["update"] for ref in made["updates"]] == [samples.TWO, "acme/valve:1.0"]
    assert [ref["update"] for ref in made["policy"]["rollback_to"]] == [samples.ONE, "acme/pump:3.0"]
    assert (made["policy"]["failed_percent"], made["policy"]["failed_count"]) == (10, 5)
    assert (made["policy"]["match"], made["policy"]["percent_of"]) == ("any", "attempted")
    assert (made["state"], made["allow_downgrade"]) == ("scheduled", True)
    assert 0 <= made["start_at_ms"] - before - 1_800_000 < 60_000
    assert (made["retries"], made["retry_delay_ms"]) == (2, 5_000)
    assert (made["device_timeout_ms"], made["attempt_timeout_ms"]) == (600_000, 86_400_000)
    ask("update", "withdraw", "acme/valve:1.0", "--why", "old")
    assert ask("deploy", "plan", "north", "acme/valve:1.0").code == 1
    assert ask("deploy", "plan", "north", "acme/valve:1.0", "--allow-withdrawn").code == 0


@pytest.mark.parametrize(
    ("at", "said"),
    [("2026-12-01T08:30", "lacks its zone"), ("soon", "is no instant"), ("+soon", "is no length of time")],
)
def test_a_start_has_its_zone(ask: Run, ids: list[str], at: str, said: str) -> None:
    """An instant without a zone means another one elsewhere."""
    refused = ask("deploy", "plan", "north", samples.TWO, "--at", at)
    assert refused.code == 2
    assert said in refused.err


def test_a_start_in_another_zone_is_that_instant(ask: Run, ids: list[str]) -> None:
    """08:30 at +01:00 is 07:30 UTC."""
    made = ask(
        "deploy", "create", "north", samples.TWO, "--at", "2099-12-01T08:30+01:00", "--yes", "--json"
    ).json
    assert made["start_at_ms"] == 4_099_793_400_000


def test_retry_and_cancel(ask: Run, ids: list[str], service: DirectService) -> None:
    """Retry says how many; cancel is final."""
    samples.deployed(service, "north", back=None)
    failed = AssignmentState.FAILED
    samples.settle(service, "d1", ids[:3], failed, reason=Reason.NETWORK, party=Party.NETWORK)
    assert "1 new attempt." in ask("deploy", "retry", "d1", "--device", ids[0]).out
    assert ask("deploy", "retry", "d1", "--json").json == {"retried": 2}
    assert "is canceled. Devices past the switch" in ask("deploy", "cancel", "d1").out
    assert ask("deploy", "cancel", "d1").code == 1


@pytest.mark.parametrize(
    ("state", "code"),
    [(AssignmentState.SUCCEEDED, 0), (AssignmentState.FAILED, 1)],
)
def test_watch_ends_when_it_is_settled(
    ask: Run, ids: list[str], service: DirectService, state: AssignmentState, code: int
) -> None:
    """0 when every device is well, 1 when one is not; each line is a new fact."""
    samples.deployed(service, "north", back=None)
    failed = {"reason": Reason.NETWORK, "party": Party.NETWORK} if state is AssignmentState.FAILED else {}
    settle = threading.Thread(target=lambda: samples.settle(service, "d1", ids, state, **failed))  # type: ignore[arg-type]
    settle.start()
    watched = ask("deploy", "watch", "d1")
    settle.join()
    lines = watched.out.strip().splitlines()
    assert watched.code == code, watched.err
    assert "Settled: " in lines[-1]
    assert len(set(lines)) == len(lines)


def test_watch_ends_with_3_when_it_was_rolled_back(ask: Run, ids: list[str], service: DirectService) -> None:
    """With `--json` each line is the API's own object."""
    samples.tripped(service, samples.deployed(service, "north").id, ids[:5])
    watched = ask("deploy", "watch", "d1", "--json")
    assert watched.code == 3
    assert json.loads(watched.out.splitlines()[-1])["rollback"] == "d2"
    assert ask("deploy", "show", "d1").out.count("d2") == 1
    ask("deploy", "cancel", "d2")
    assert ask("deploy", "watch", "d2").code == 1


def test_watch_gives_up_when_told_to(ask: Run, ids: list[str], service: DirectService) -> None:
    """Also on a stream that says nothing."""
    samples.deployed(service, "north", back=None)
    watched = ask("deploy", "watch", "d1", "--timeout", "300ms")
    assert watched.code == 1
    assert "--timeout" in watched.err


def test_resume_lists_and_goes_on(ask: Run, ids: list[str], service: DirectService) -> None:
    """R2: after a restore, what would be ordered is listed first; without a restore there is nothing to resume."""
    samples.deployed(service, "north", back=None)
    nothing = ask("deploy", "resume", "--yes")
    assert (nothing.code, nothing.out) == (1, "")
    assert "there is nothing to resume" in nothing.err
    with service.rows() as unit:
        unit.put_note("restored", "1")
    alone = ask("deploy", "resume")
    assert (alone.code, alone.out) == (2, "")
    assert "nobody to ask" in alone.err
    resumed = ask("deploy", "resume", "--yes")
    assert samples.TWO in resumed.out
    assert "New orders for 20 devices." in resumed.out


def test_a_plan_counts_whom_it_would_be_refused_by(ask: Run, ids: list[str], service: DirectService) -> None:
    """Devices that run a newer version are no devices that would be updated; what starts later says when."""
    samples.imported(service, "0.9")
    planned = ask("deploy", "plan", "north", "acme/pump:0.9")
    assert "would be updated  0\n" in planned.out
    assert "would refuse it   20\n" in planned.out
    assert "20 devices run a newer version already" in planned.out
    wanted = ask("deploy", "plan", "north", "acme/pump:0.9", "--allow-downgrade", "--at", "2099-01-01T00:00Z")
    assert "would be updated  20\n" in wanted.out
    assert "refuse" not in wanted.out
    assert "starts            2099-01-01 00:00:00 UTC\n" in wanted.out
    made = ask("deploy", "create", "north", samples.TWO, "--at", "2099-01-01T00:00Z", "--yes")
    assert made.code == 0
    assert "scheduled (starts 2099-01-01 00:00:00 UTC)" in ask("deploy", "list").out


def test_what_is_no_deployment_is_said(ask: Run) -> None:
    """Before anything is asked, and with where to look."""
    for wrong in ("", "../../x", "4", "d0"):
        for command in ("show", "watch", "cancel", "retry"):
            ran = ask("deploy", command, wrong)
            assert (ran.code, ran.out) == (1, "")
            assert "is no deployment, such as d1; see `lastgood deploy list`" in ran.err


def test_a_retry_of_nothing_says_so(ask: Run, ids: list[str], service: DirectService) -> None:
    """Nobody has failed."""
    made = samples.deployed(service, "north", back=None)
    assert ask("deploy", "retry", made.id).out == "No device has failed; there is nothing to retry.\n"


def test_no_cloud_is_said_with_what_to_do(run: Run, tmp_path: Path) -> None:
    """No folder, no answer, no token, no address: each one sentence."""
    nothing = run("device", "list", "--data", tmp_path / "none")
    assert nothing.code == 1
    assert "lastgood cloud up" in nothing.err
    dead = run("device", "list", "--url", "http://127.0.0.1:9", "--token", "x")
    assert dead.code == 1
    assert "No cloud answers at http://127.0.0.1:9" in dead.err
    assert "--token" in run("device", "list", "--url", "http://127.0.0.1:9", "--data", tmp_path).err
    for address in ("cloud:8080", "http://[::1", "http://cloud:http", "ftp://cloud"):
        assert "is not the address" in run("device", "list", "--url", address, "--token", "x").err
    for token in ("é", "a\nb"):
        strange = run("device", "list", "--url", "http://127.0.0.1:9", "--token", token)
        assert (strange.code, "look at --token" in strange.err) == (1, True)
    (tmp_path / "client.json").write_text("{")
    assert "cannot be read" in run("device", "list", "--data", tmp_path).err


def test_the_folders_token_goes_to_the_folders_cloud_only(run: Run, data: Path, tmp_path: Path) -> None:
    """With another --url the token is asked for, and not sent there."""
    refused = run("device", "list", "--data", data, "--url", "http://127.0.0.1:9")
    assert refused.code == 1
    assert "The API token for http://127.0.0.1:9 is missing" in refused.err


def test_a_role_that_is_too_low_is_said(run: Run, data: Path) -> None:
    """The cloud's sentence is the command's."""
    refused = run("device", "add", "pump-1", "--data", data, "--token", TOKENS[Role.VIEWER])
    assert refused.code == 1
    assert refused.err == "lastgood: This needs the role admin, and yours is viewer.\n"


def test_the_environment_says_where_the_cloud_is(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LASTGOOD_URL and LASTGOOD_TOKEN, or LASTGOOD_DATA; a proxy of the environment is not asked on this machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("LASTGOOD_DATA", str(data))
    assert run("device", "list").code == 0
    words = json.loads((data / "client.json").read_text())
    monkeypatch.delenv("LASTGOOD_DATA")
    monkeypatch.setenv("LASTGOOD_URL", words["url"])
    monkeypatch.setenv("LASTGOOD_TOKEN", words["token"])
    assert run("device", "list").code == 0
