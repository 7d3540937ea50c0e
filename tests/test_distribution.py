"""What is built for others to install: everything that is read at run time, and on a device the agent's needs alone."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("protocol", "agent", "cloud_stub", "simulator", "inspector", "configs")
DEVICE_NEEDS = {"click", "cryptography", "paho-mqtt", "pydantic", "securesystemslib", "urllib3"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the checkout: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("distribution")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "lastgood.py"):
        shutil.copy(ROOT / name, source / name)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    ran = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_that_is_read(wheel: Path) -> None:
    """Code, pages, migrations and configs are all in the wheel, in the places they have in a checkout."""
    wanted = {
        (Path(folder) / file).relative_to(ROOT).as_posix()
        for name in SHIPPED
        for folder, _, files in os.walk(ROOT / name)
        for file in files
        if "__pycache__" not in folder and not file.startswith(".")
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted | {"lastgood.py"}


def test_a_device_needs_the_agent_s_dependencies_alone(wheel: Path) -> None:
    """Without an extra the wheel asks for what the agent imports, and nothing of the service."""
    archive = zipfile.ZipFile(wheel)
    metadata = Parser().parsestr(
        archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
    )
    needs = metadata.get_all("Requires-Dist") or []
    plain = {
        match[0] for need in needs if "extra ==" not in need and (match := re.match(r"[A-Za-z0-9-]+", need))
    }
    assert plain == DEVICE_NEEDS
    assert set(metadata.get_all("Provides-Extra") or []) == {"tools", "cloud", "sim", "dev"}


def test_the_command_is_installed(wheel: Path) -> None:
    """The wheel brings one command, `lastgood`."""
    archive = zipfile.ZipFile(wheel)
    scripts = archive.read(next(n for n in archive.namelist() if n.endswith("/entry_points.txt"))).decode()
    assert "lastgood = lastgood:main" in scripts
