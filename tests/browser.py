"""A real browser for tests: Debian's chromium, driven over WebDriver; without it tests are skipped aloud."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service as Driver

INSTALL: Final = "apt-get install --no-install-recommends chromium chromium-driver"
# Nothing that looks for hosts of its own: a test's browser talks to loopback only.
FLAGS: Final = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
WINDOW: Final = (1280, 900)


@contextmanager
def browser(
    profile: Path, *, dark: bool = False, scripts: bool = True, width: int = WINDOW[0]
) -> Iterator[Chrome]:
    """Open a browser with an empty profile, and close it; skips the test when there is none.

    `scripts=False` switches JavaScript off, since pages have to be readable without.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(f"no chromium and chromedriver on the PATH; install them with: {INSTALL}")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{WINDOW[1]}"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # chromium refuses to start as root with it
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=Driver(executable_path=driver))
    try:
        if dark:
            feature = [{"name": "prefers-color-scheme", "value": "dark"}]
            opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        yield opened
    finally:
        opened.quit()


def complaints(opened: Chrome) -> list[str]:
    """Return what the browser's console complained of: script errors, refused styles, what could not be loaded."""
    return [
        str(entry["message"])
        for entry in opened.get_log("browser")  # type: ignore[no-untyped-call]
        if entry["level"] in ("SEVERE", "WARNING")
    ]
