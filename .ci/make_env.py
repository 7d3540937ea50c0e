"""Make the project's environment (`.venv`) from its hash-locked requirements, with nothing but a Python 3.11.

It is not a package manager: pip does the work. It keeps three rules: only what the lock names is installed, with the
lock's hashes; any pip there is does it, else one that `ensurepip` makes (Debian's Python, as it comes, has neither: one
line says what to install); and what is up to date is left alone, so that a second run is instant.

    python3 .ci/make_env.py [--env .venv] [--root .]

Only the standard library is imported, for nothing else is there yet.
"""

import argparse
import fcntl
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

LOCK = "requirements.lock"
PROJECT = "pyproject.toml"
STAMP = ".lastgood-stamp"
OLDEST = (3, 11)
PIP_OLDEST = (22, 3)  # the first that can install into another environment (`pip --python`)
NO_PIP = "this python3 has neither ensurepip nor pip: run `apt install python3-venv`, then make again."


class CannotMake(Exception):
    """The environment cannot be made; the sentence says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Make or refresh the environment; return 0, or 1 after one line on stderr."""
    parser = argparse.ArgumentParser(description="Make the project's environment from its lock.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout")
    parser.add_argument("--env", type=Path, help="where the environment is made (default: ROOT/.venv)")
    options = parser.parse_args(arguments)
    root: Path = options.root.resolve()
    env: Path = (options.env or root / ".venv").absolute()
    try:
        with _one_at_a_time(env):
            make(root, env)
    except CannotMake as reason:
        print(f"make_env: {reason}", file=sys.stderr)
        return 1
    return 0


def make(root: Path, env: Path) -> None:
    """Bring `env` to what the lock of `root` says: nothing, the project alone, or all anew.

    Raises:
        CannotMake: this Python is too old, has no way to pip, or pip failed.
    """
    if sys.version_info < OLDEST:
        found_version = sys.version.split()[0]
        raise CannotMake(
            f"lastgood needs Python 3.11 or newer, and this is {found_version}: install python3.11."
        )
    wanted, found = _stamps(root), _read(env / STAMP)
    if found == wanted:
        return
    python = env / "bin" / "python"
    if found[:1] != wanted[:1] or not python.exists():
        _say(f"making {env.name} from {LOCK} (a minute or two)")
        pip = _make_empty(env)
        # Not compiled: of a million lines most are never imported, and Python compiles what is.
        locked = ["--require-hashes", "--no-deps", "--no-compile", "-r", str(root / LOCK)]
        _run([*pip, "install", *locked], "pip could not install the lock")
    else:
        pip = _pip_of(env)
    # The build backend is in the lock: nothing is fetched here. `compat` is one plain .pth line, no import hook.
    editable = [
        "--no-deps",
        "--no-build-isolation",
        "--config-settings",
        "editable_mode=compat",
        "-e",
        str(root),
    ]
    _run([*pip, "install", *editable], "pip could not install the project itself")
    (env / STAMP).write_text("\n".join(wanted) + "\n", encoding="utf-8")


def _make_empty(env: Path) -> list[str]:
    """Make an empty environment; return the pip command that installs into it, its own only where there is no other.

    Raises:
        CannotMake: there is no other, and `ensurepip` makes none.
    """
    pip = _foreign_pip(env)
    if pip is None and not _has_ensurepip():
        raise CannotMake(NO_PIP)
    try:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=pip is None).create(env)
    except subprocess.CalledProcessError as failed:
        raise CannotMake("ensurepip failed: run `apt install python3-venv`, then make again.") from failed
    return pip or _own_pip(env)


def _pip_of(env: Path) -> list[str]:
    """Return the environment's own pip, or else one from outside.

    Raises:
        CannotMake: there is neither.
    """
    if any(env.glob("lib/python*/site-packages/pip/__main__.py")):
        return _own_pip(env)
    pip = _foreign_pip(env)
    if pip is None:
        raise CannotMake(NO_PIP)
    return pip


def _own_pip(env: Path) -> list[str]:
    return [str(env / "bin" / "python"), "-m", "pip"]


def _has_ensurepip() -> bool:
    """Tell whether this Python can put pip into an environment: Debian's may lack the module, or its wheels."""
    try:
        import ensurepip
    except ImportError:
        return False
    return bool(ensurepip.version())


def _foreign_pip(env: Path) -> list[str] | None:
    """Return a pip outside the environment that installs into it, with the configuration it has; None without one."""
    into = ["--python", str(env / "bin" / "python")]
    if _version_here() >= PIP_OLDEST:
        return [sys.executable, "-m", "pip", *into]
    for path in filter(None, (shutil.which("pip3"), shutil.which("pip"))):
        if _version_of(path) >= PIP_OLDEST:
            return [path, *into]
    return None


def _version_here() -> tuple[int, ...]:
    """Return the version of the pip that this Python imports; empty when it has none."""
    try:
        return _parsed(str(importlib.import_module("pip").__version__))
    except ImportError:
        return ()


def _version_of(pip: str) -> tuple[int, ...]:
    """Return the version that a pip prints; empty when it cannot be run."""
    try:
        ran = subprocess.run([pip, "--version"], capture_output=True, text=True, check=True)
        return _parsed(ran.stdout.split()[1])
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ()


def _parsed(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return ()


def _run(command: list[str], complaint: str) -> None:
    quiet = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    ran = subprocess.run(
        [*command, "--quiet"], env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if ran.returncode:
        print(ran.stderr, file=sys.stderr, end="")
        raise CannotMake(f"{complaint}; its own words stand above.")


def _stamps(root: Path) -> list[str]:
    """Say what an environment is made of: the lock with this Python, then the project's own metadata and place."""
    lock = hashlib.sha256((root / LOCK).read_bytes()).hexdigest()
    project = hashlib.sha256((root / PROJECT).read_bytes()).hexdigest()
    return [f"{sys.version_info[0]}.{sys.version_info[1]} {lock}", f"{root} {project}"]


def _read(stamp: Path) -> list[str]:
    try:
        return stamp.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


class _one_at_a_time:  # noqa: N801 - reads as a word in a `with`
    """Hold a lock file beside the environment: two makes at once would build into each other."""

    def __init__(self, env: Path) -> None:
        self.path = env.with_name(f"{env.name}.lock")

    def __enter__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _say(sentence: str) -> None:
    print(f"make_env: {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
