"""The house rules that no linter knows, as tests: size, docstrings, purity, names that must not appear.

It reads the source as text and as a syntax tree, and runs none of it. What ruff, mypy and import-linter hold is not
repeated here; import-linter forbids the pure modules what is known to be impure, this file allows them what is known to
be pure, so that a new impure module is refused too.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
FILE_LINES_MAX: Final = 500  # past this, split where the seam feels right
FUNCTION_LINES_MAX: Final = 70

PACKAGES: Final = ("protocol", "agent", "cloud_stub", "simulator", "inspector")
PURE: Final = ("protocol", "agent/core", "cloud_stub/core", "inspector/core", "simulator/core")
OUR_OWN: Final = {
    "protocol": ("protocol",),
    "agent/core": ("protocol", "agent.core"),
    "cloud_stub/core": ("protocol", "cloud_stub.core"),
    "inspector/core": ("protocol", "inspector.core"),
    # Virtual devices run the agent's own rules.
    "simulator/core": ("protocol", "agent.core", "simulator.core"),
}
# fmt: off
PURE_MODULES: Final = frozenset({
    "__future__", "abc", "base64", "binascii", "bisect", "collections", "copy", "dataclasses", "datetime",
    "decimal", "enum", "fractions", "functools", "graphlib", "hashlib", "heapq", "hmac", "ipaddress",
    "itertools", "json", "math", "operator", "re", "statistics", "string", "struct", "textwrap", "tomllib", "types",
    "typing", "typing_extensions", "unicodedata", "zlib", "annotated_types", "cryptography", "pydantic",
    "pydantic_core",
})
# fmt: on
PURE_PARTS: Final = (
    "fnmatch.fnmatchcase",
    "urllib.parse",
    "securesystemslib.dsse",
    "securesystemslib.signer",
    "securesystemslib.exceptions",
)
"""Modules of packages that are impure as a whole; of securesystemslib only DSSE and the Ed25519 verifier."""

IMPURE_CALLS: Final = frozenset({"open", "input", "print", "exec", "eval", "breakpoint", "__import__"})
CLOCK_CALLS: Final = frozenset({"now", "utcnow", "today", "generate", "load_pem_private_key"})
"""Methods of the allowed modules that read a clock or draw randomness; keys come in as values."""

SLEEPER: Final = "waiting.py"
"""The one file of tests/ that may sleep: it waits for a condition, with a deadline."""

TEXT_SUFFIXES: Final = frozenset(
    {
        ".py",
        ".md",
        ".toml",
        ".lock",
        ".json",
        ".html",
        ".css",
        ".js",
        ".svg",
        ".mako",
        ".ini",
        ".service",
        ".conf",
        ".yml",
        ".yaml",
        ".sh",
        "",
    }
)
NOT_OURS: Final = frozenset({"__pycache__", "build", "dist", "out", "node_modules"})
NEVER_NAMED: Final = {
    "a path of somebody's machine": re.compile(r"(?<![\w.}])/(work|root)/|/home/(?!pi\b|USER\b)\w+/|\.pyenv"),
    "a package registry": re.compile(
        r"py" + r"pi\.org|python" + r"hosted\.org|npm" + r"js\.(org|com)|deb\.deb" + r"ian\.org"
    ),
}


@cache
def _sources() -> tuple[Path, ...]:
    """Return every Python file of the project."""
    folders = (*PACKAGES, "tests", "docs", ".ci", "configs")
    found = [ROOT / "lastgood.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    return tuple(sorted(path for path in found if not NOT_OURS & set(path.parts)))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def _pure_files() -> Iterator[tuple[str, Path]]:
    return ((folder, path) for folder in PURE for path in _sources() if (ROOT / folder) in path.parents)


def _texts() -> Iterator[Path]:
    """Return every text file of the checkout that is ours, .ci among them."""
    tops = [path for path in ROOT.iterdir() if path.name == ".ci" or not path.name.startswith(".")]
    every = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*"))]
    return (
        path
        for path in every
        if path.is_file()
        and path.suffix in TEXT_SUFFIXES
        and not NOT_OURS & set(path.parts)
        and "egg-info" not in str(path)
    )


def test_the_pure_folders_are_there() -> None:
    """The rules below look at something: each pure folder has files."""
    assert {folder for folder, _ in _pure_files()} == set(PURE)


def test_files_are_short() -> None:
    """No file is longer than a reader takes in."""
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in _sources()}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    """No function is longer than a screen."""
    long = {
        f"{_name(path)}:{function.lineno} {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in _sources()
        if "migrations" not in path.parts  # a migration is one long list of columns
        for function in _functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_every_module_says_what_it_is() -> None:
    """Each module has a docstring of at least a sentence."""
    assert [_name(path) for path in _sources() if len(ast.get_docstring(_tree(path)) or "") < 15] == []


def test_every_test_says_what_it_proves() -> None:
    """Each test function has a docstring."""
    silent = [
        f"{_name(path)}:{function.lineno} {function.name}"
        for path in _sources()
        if path.name.startswith("test_")
        for function in _functions(path)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert silent == []


def test_the_pure_import_what_is_pure() -> None:
    """protocol and the cores import the modules that are listed here as pure, and their own."""
    refused = [
        f"{_name(path)}:{line} imports {module}"
        for folder, path in _pure_files()
        for line, module in _imports(path)
        if not _is_pure(module, OUR_OWN[folder])
    ]
    assert refused == []


def test_the_command_line_opens_packages_by_name() -> None:
    """lastgood.py imports of ours the root error alone, so that one command loads one package."""
    ours = [module for _, module in _imports(ROOT / "lastgood.py") if module.split(".")[0] in PACKAGES]
    assert ours == ["protocol.errors.LastgoodError"]


def test_the_pure_read_no_clock_and_draw_no_chance() -> None:
    """protocol and the cores call nothing that reads a clock, draws randomness, or does I/O."""
    refused = [
        f"{_name(path)}:{node.lineno} calls {ast.unparse(node.func)}"
        for _, path in _pure_files()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and _is_impure_call(node.func)
    ]
    assert refused == []


def test_tests_never_sleep() -> None:
    """Tests wait for a condition with a deadline; one helper alone sleeps between two looks."""
    asleep = [
        f"{_name(path)}:{node.lineno}"
        for path in _sources()
        if ROOT / "tests" in path.parents and path != ROOT / "tests" / SLEEPER
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"sleep", "time.sleep", "asyncio.sleep"}
        # sleep(0) waits for nothing: it lets the loop turn once.
        if [ast.unparse(argument) for argument in node.args] != ["0"]
    ]
    assert asleep == []


def test_tests_never_patch_our_modules() -> None:
    """Fakes are written by hand (beside the tests that use them); nothing imports a mocking library."""
    mocking = [
        f"{_name(path)}:{line}"
        for path in _sources()
        for line, module in _imports(path)
        if module.startswith("unittest.mock") or module.split(".")[0] in {"mock", "pytest_mock"}
    ]
    assert mocking == []


@pytest.mark.parametrize("what", sorted(NEVER_NAMED))
def test_nothing_names(what: str) -> None:
    """No file names a path of somebody's machine or the host of a registry: the checkout works anywhere."""
    pattern = NEVER_NAMED[what]
    named = [
        f"{_name(path)}:{number}: {line.strip()[:80]}"
        for path in _texts()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert named == []


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-agent.lock"])
def test_a_lock_is_whole(lock: str) -> None:
    """Each requirement is pinned to one version and has hashes; no line is an option that names a place."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines
    assert [
        line for line in lines if not re.match(r"[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)
    ] == []


def test_the_device_s_lock_is_a_part_of_the_whole() -> None:
    """What a device installs is what was tested: the same versions, and far fewer of them."""
    whole, device = (
        {line.split()[0] for line in (ROOT / lock).read_text(encoding="utf-8").splitlines() if "==" in line}
        for lock in ("requirements.lock", "requirements-agent.lock")
    )
    assert device < whole
    assert not {line for line in device if re.match(r"fastapi|sqlalchemy|httpx|amqtt|rich|uvicorn", line)}


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Name each module that a file imports, at its top or inside; `from a import b` counts as `a.b`."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _is_pure(module: str, ours: tuple[str, ...]) -> bool:
    if any(module == part or module.startswith(f"{part}.") for part in (*ours, *PURE_PARTS)):
        return True
    return module.split(".")[0] in PURE_MODULES


def _is_impure_call(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id in IMPURE_CALLS
    return isinstance(called, ast.Attribute) and called.attr in CLOCK_CALLS
