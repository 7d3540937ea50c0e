"""The script behind `make env`: what it does on a Python as Debian ships it, without ensurepip, with and without a pip.

Nothing is fetched: the checkout it works on is a small one made here, with a lock that names one wheel made here.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "make_env.py"
STAMP = ".lastgood-stamp"

# A build backend in the checkout itself, in place of setuptools: an editable wheel is a zip with a .pth line.
BACKEND = """
import os, zipfile

def build_editable(folder, settings=None, metadata=None):
    name = "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info/"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("tiny.pth", os.getcwd())
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
# Runs a script as if it could not import some modules; the processes that it starts can.
HIDING = """
import runpy, sys
hidden, sys.argv = sys.argv[1], sys.argv[2:]
sys.modules.update(dict.fromkeys(hidden.split(",")))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _bare_pythons() -> Iterator[Path]:
    """Name the Pythons of this machine that are no environment: the one below the tests, and Debian's."""
    seen = set()
    for python in (
        Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}",
        Path("/usr/bin/python3.11"),
    ):
        if python.exists() and python.resolve() not in seen:
            seen.add(python.resolve())
            yield python


def _has(python: Path, module: str) -> bool:
    return (
        subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
    )


@pytest.fixture(params=list(_bare_pythons()), ids=str)
def python(request: pytest.FixtureRequest) -> Path:
    """Return one Python of this machine that is no environment."""
    found: Path = request.param
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout with a lock of one wheel, and that wheel beside it."""
    root, wheels = tmp_path / "checkout", tmp_path / "wheels"
    (root / "backend").mkdir(parents=True)
    wheels.mkdir()
    (root / "backend" / "tiny_backend.py").write_text(BACKEND)
    (root / "pyproject.toml").write_text(
        '[project]\nname = "tiny"\nversion = "1.0"\n'
        '[build-system]\nrequires = []\nbuild-backend = "tiny_backend"\nbackend-path = ["backend"]\n'
    )
    wheel = wheels / "locked_in-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("locked_in.py", "")
        archive.writestr(
            "locked_in-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: locked-in\nVersion: 1.0\n"
        )
        archive.writestr(
            "locked_in-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("locked_in-1.0.dist-info/RECORD", "")
    _lock(root, hashlib.sha256(wheel.read_bytes()).hexdigest())
    return root


def _lock(root: Path, sha256: str) -> None:
    (root / "requirements.lock").write_text(f"locked-in==1.0 --hash=sha256:{sha256}\n")


def _make_env(python: Path, checkout: Path, hide: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the script with `python`, the modules in `hide` not importable, and no other pip to be found on the PATH."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))
    }
    environment |= {
        "PATH": str(checkout.parent / "empty"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(checkout.parent / "wheels"),
    }
    hiding = ["-c", HIDING, ",".join(hide)] if hide else []
    command = [str(python), *hiding, str(SCRIPT), "--root", str(checkout)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _imports(checkout: Path, module: str) -> bool:
    return _has(checkout / ".venv" / "bin" / "python", module)


@pytest.mark.slow
@pytest.mark.parametrize(("with_", "hidden"), [("ensurepip", "pip"), ("pip", "ensurepip")])
def test_makes_the_environment(python: Path, checkout: Path, with_: str, hidden: str) -> None:
    """The environment holds what the lock names and the project, with ensurepip alone and with pip alone."""
    if not _has(python, with_):
        pytest.skip(f"{python} has no {with_}, which this case is about")
    ran = _make_env(python, checkout, (hidden,))
    assert ran.returncode == 0, ran.stderr
    assert _imports(checkout, "locked_in")
    assert _imports(checkout, "backend.tiny_backend")


def test_without_ensurepip_and_pip_one_line_says_what_to_install(python: Path, checkout: Path) -> None:
    """With no way to a pip nothing is made, and one line names the package that brings it."""
    ran = _make_env(python, checkout, ("ensurepip", "pip"))
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "apt install python3-venv" in ran.stderr
    assert not (checkout / ".venv").exists()


def test_is_instant_when_nothing_changed_and_starts_anew_when_the_lock_did(checkout: Path) -> None:
    """A second run touches nothing; a change of the project installs it alone; a change of the lock clears."""
    python = next(_bare_pythons())
    env = checkout / ".venv"
    assert _make_env(python, checkout).returncode == 0
    stray = env / "stray"
    stray.touch()
    stamp = (env / STAMP).stat().st_mtime_ns
    again = _make_env(python, checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (env / STAMP).stat().st_mtime_ns == stamp

    with (checkout / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    assert _make_env(python, checkout).returncode == 0
    assert (env / STAMP).stat().st_mtime_ns != stamp
    assert stray.exists()

    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert _make_env(python, checkout).returncode == 0
    assert not stray.exists()


def test_refuses_what_has_another_hash(checkout: Path) -> None:
    """A file whose bytes are not those of the lock is not installed, and the environment stays unfinished."""
    python = next(_bare_pythons())
    _lock(checkout, "0" * 64)
    ran = _make_env(python, checkout)
    assert ran.returncode == 1
    assert ran.stderr.rstrip().endswith(
        "make_env: pip could not install the lock; its own words stand above."
    )
    assert not (checkout / ".venv" / STAMP).exists()
