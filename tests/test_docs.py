"""The pages of `docs/` that are made from the code say what the code says."""

import re
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES: Mapping[str, Callable[[], str]] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_generated_page_is_what_the_code_makes_of_it(name: str) -> None:
    """Each page equals what the generator writes now; if not, `make docs` writes it anew."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), (
        "run `make docs`, and commit docs/"
    )


def test_links_in_the_pages_lead_somewhere() -> None:
    """Every relative link in the README and below docs/ names a file of the checkout."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_make_help_names_every_target() -> None:
    """`make` alone lists all targets that a person may call, each with a sentence."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert re.findall(r"^([a-z]+):.*## \w", makefile, re.MULTILINE) == phony[1].split()
