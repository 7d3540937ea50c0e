"""What an agent is told: the TOML file, the join text, and what is written for the next start."""

import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.adapters.toml_file import dump_toml
from protocol.errors import OperatorError
from protocol.join import Join
from tests.agent.builders import DIRECTOR

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "agent.toml"
JOIN = Join(broker="mqtt://127.0.0.1:1", device="pi-1", token="t" * 27, keys_pem=(DIRECTOR.public_pem,))
LEAST = 'device = "pi-1"\nbroker = "mqtt://h"\ntoken = "secret"\ncloud_keys = "cloud.pem"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what a configuration names."""
    (tmp_path / "cloud.pem").write_text(f"# ours\n{DIRECTOR.public_pem}\n{DIRECTOR.public_pem}")
    (tmp_path / "pi-1.token").write_text("from-a-file\n")
    return tmp_path


def load(folder: Path, text: str) -> config.AgentSettings:
    """Load a configuration from text."""
    (folder / "agent.toml").write_text(text)
    return config.load(folder / "state", folder / "agent.toml")


def test_the_example_is_a_good_one(folder: Path) -> None:
    """Every key of the example file is read, those in comments too."""
    text = EXAMPLE.read_text()
    settings = load(folder, text)
    assert (settings.device, settings.token) == ("pi-1", "from-a-file")
    assert (len(settings.keys_pem), settings.keys_pem[0].strip()) == (2, DIRECTOR.public_pem.strip())
    assert settings.properties == {"manufacturer": "contoso", "model": "toaster"}
    assert settings.tags == {"group": "lab"}
    assert settings.slots == folder / "state" / "slots"
    assert settings.application.command[0] == "python3"
    assert [(check.kind, check.url) for check in settings.checks] == [
        ("http", "http://127.0.0.1:8080/health")
    ]
    uncommented = "\n".join(
        line[2:] if line.startswith("# ") and " = " in line and "ca_file" not in line else line
        for line in text.splitlines()
    )
    assert load(folder, uncommented).download_bytes_s == 500_000


def test_the_least_that_is_needed(folder: Path) -> None:
    """Device, broker, token and keys; the rest has defaults that its docstrings name."""
    settings = load(folder, LEAST)
    assert (settings.prefix, settings.application.kind, settings.checks) == ("lg/v1", "none", ())
    assert (settings.soak_s, settings.trial_starts, settings.download_bytes_s) == (60, 3, None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "'device'"),
        (LEAST.replace("pi-1", "a/b"), "not a device id"),
        (LEAST + "soka_s = 3", "'soka_s' is not a key"),
        (LEAST + "soak_s = -1", "'soak_s'"),
        (LEAST + "soak_s = inf", "'soak_s'"),
        (LEAST + "soak_s = true", "'soak_s'"),
        (LEAST + 'token_file = "pi-1.token"', "'token' and 'token_file'"),
        (LEAST.replace("cloud.pem", "none.pem"), "'cloud_keys' names"),
        (LEAST.replace("cloud.pem", "pi-1.token"), "no public key"),
        (LEAST + '[slots]\nbackend = "rauc"', "'slots.backend'"),
        (LEAST + '[application]\nkind = "process"', "'application.command' is missing"),
        (LEAST + '[application]\nkind = "systemd"', "'application.unit' is missing"),
        (LEAST + '[application]\nkind = "none"\nunit = "x"', "'application.kind'"),
        (LEAST + '[application]\nkind = "process"\ncommand = "x"', "'application.command'"),
        (LEAST + '[[checks]]\nkind = "ping"', r"'checks\[0\].kind'"),
        (LEAST + '[[checks]]\nkind = "tcp"', r"'checks\[0\].port' is missing"),
        (LEAST + '[[checks]]\nkind = "http"\nurl = "x"', r"'checks\[0\].url'"),
        (LEAST + '[[checks]]\nkind = "http"\nurl = "http://[::1/"', r"'checks\[0\].url'"),
        (LEAST + '[[checks]]\nkind = "http"\nurl = "http://localhost:port/"', r"'checks\[0\].url'"),
        (LEAST + '[[checks]]\nkind = "http"\nurl = "http://localhost/a b"', r"'checks\[0\].url'"),
        (LEAST + '[[checks]]\nkind = "tcp"\nport = 1\nhost = ""', r"'checks\[0\].host'"),
        (LEAST + f'[[checks]]\nkind = "tcp"\nport = 1\nhost = "{"x" * 64}"', r"'checks\[0\].host'"),
        (LEAST + 'ca_file = "none.pem"', "'ca_file' names"),
        (LEAST + 'ca_file = "pi-1.token"', "no certificate"),
        (LEAST + '[[checks]]\nkind = "command"', r"'checks\[0\].command' is missing"),
        (LEAST + '[[checks]]\nkind = "tcp"\nport = 1\nurl = "x"', r"'checks\[0\].url' is not a key"),
        (LEAST + '[tags]\ngroup = "a b"', "cannot name a group"),
        (LEAST + "[properties]\nmodel = 3", "'properties.model'"),
        (LEAST + '[properties]\n"a b" = "x"', "'a b'"),
        (LEAST + "checks = 3", "'checks'"),
        (LEAST + 'needs_cloud = "no"', "'needs_cloud'"),
        ("device = ", "is not TOML"),
    ],
)
def test_a_wrong_key_is_named(folder: Path, text: str, key: str) -> None:
    """The sentence names the key, whatever is wrong with it."""
    with pytest.raises(OperatorError, match=key):
        load(folder, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """And so is the file."""
    with pytest.raises(OperatorError, match=r"none\.toml cannot be read"):
        config.load(tmp_path, tmp_path / "none.toml")


def test_joining_is_remembered(folder: Path) -> None:
    """After one start with --join, the state folder alone is enough, with all that was told then."""
    state = folder / "state"
    (folder / "app.toml").write_text(
        '[application]\nkind = "process"\ncommand = ["x"]\n[[checks]]\nkind = "tcp"\nport = 1\n'
    )
    first = config.load(state, folder / "app.toml", JOIN, {"model": "toaster"}, {"group": "lab"})
    again = config.load(state)
    assert again == first
    assert (again.device, again.tags, again.application.command) == ("pi-1", {"group": "lab"}, ("x",))
    assert stat.S_IMODE((state / "agent.toml").stat().st_mode) == 0o600


def test_joining_anew_replaces_the_token_alone(folder: Path) -> None:
    """A new token for the same device is taken; the folder of another device is refused."""
    state = folder / "state"
    config.load(state, None, JOIN, {}, {"group": "lab"})
    settings = config.load(state, None, JOIN.model_copy(update={"token": "n" * 27}))
    assert (settings.token, settings.tags) == ("n" * 27, {"group": "lab"})
    with pytest.raises(OperatorError, match="belongs to the device 'pi-1'"):
        config.load(state, None, JOIN.model_copy(update={"device": "pi-2"}))


def test_a_configuration_wins_over_what_was_joined(folder: Path) -> None:
    """What a person writes into a file now counts more than what was kept."""
    state = folder / "state"
    config.load(state, None, JOIN)
    (folder / "agent.toml").write_text('token_file = "pi-1.token"\ncloud_keys = "cloud.pem"\nsoak_s = 5')
    settings = config.load(state, folder / "agent.toml")
    assert (settings.token, settings.soak_s, len(settings.keys_pem)) == ("from-a-file", 5, 2)


def test_a_files_broker_wins_over_the_join_texts(folder: Path) -> None:
    """Also on the joining run: with TLS in the file the token must not cross the network in clear."""
    (folder / "agent.toml").write_text('broker = "mqtts://broker.example.com"')
    assert config.load(folder / "state", folder / "agent.toml", JOIN).broker == "mqtts://broker.example.com"


def test_what_a_file_no_longer_says_is_no_longer_so(folder: Path) -> None:
    """Joining keeps the whole for `--state` alone; beside a file only the identity counts."""
    state, path = folder / "state", folder / "agent.toml"
    path.write_text('soak_s = 5\n[tags]\ngroup = "lab"\n[application]\nkind = "process"\ncommand = ["x"]\n')
    config.load(state, path, JOIN)
    path.write_text('[application]\nkind = "systemd"\nunit = "app.service"\n')
    settings = config.load(state, path)
    assert (settings.device, settings.tags, settings.application.kind) == ("pi-1", {}, "systemd")


def test_the_state_folder(folder: Path) -> None:
    """The given one, else the configuration's beside it, else the default."""
    (folder / "agent.toml").write_text('state = "mine"')
    path = folder / "agent.toml"
    assert config.state_of(path, folder / "x", Path("/d")) == folder / "x"
    assert config.state_of(path, None, Path("/d")) == folder / "mine"
    assert config.state_of(None, None, Path("/d")) == Path("/d")


@pytest.mark.parametrize(
    "fields",
    [
        {"a": 'q"u\\o\n\x7fé', "b": [1, 2.5, True], "t": {"x y": "z", "": "e"}},
        {"list": [{"a": 1, "t": {"b": "c"}}, {"a": 2}], "t": {"u": {"v": 1}}, "empty": [], "none": {}},
    ],
)
def test_toml_is_read_as_it_was_written(fields: dict[str, Any]) -> None:
    """dump and loads are inverses."""
    assert tomllib.loads(dump_toml(fields)) == fields
