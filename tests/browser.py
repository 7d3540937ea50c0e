"""A real browser for tests: Debian's chromium, driven over WebDriver; without it tests are skipped aloud."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from selenium.common.exceptions import SessionNotCreatedException
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
STARTS: Final = 4


@contextmanager
def browser(profiles: Path) -> Iterator[Chrome]:
    """Start a browser, and end it; skips the test when there is none. Its profiles are made below the folder."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(f"no chromium and chromedriver on the PATH; install them with: {INSTALL}")
    started = _start(chromium, driver, profiles)
    try:
        yield started
    finally:
        started.quit()


def _start(chromium: str, driver: str, profiles: Path) -> Chrome:
    for attempt in range(1, STARTS + 1):
        options = ChromeOptions()
        options.binary_location = chromium
        profile = f"--user-data-dir={profiles / str(attempt)}"
        for flag in (*FLAGS, profile, f"--window-size={WINDOW[0]},{WINDOW[1]}"):
            options.add_argument(flag)
        if os.geteuid() == 0:
            options.add_argument("--no-sandbox")  # chromium refuses to start as root with it
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        try:
            return Chrome(options=options, service=Driver(executable_path=driver))
        except (
            SessionNotCreatedException
        ):  # the driver gives a browser 60 s, and a busy machine may need more
            if attempt == STARTS:
                raise
    raise AssertionError("unreachable")


@contextmanager
def tab(
    started: Chrome, *, dark: bool = False, scripts: bool = True, width: int = WINDOW[0]
) -> Iterator[Chrome]:
    """Open a page of a running browser that nobody is signed in with, and close it.

    `scripts=False` switches JavaScript off, since pages have to be readable without.
    """
    home = started.current_window_handle
    started.switch_to.new_window("tab")
    try:
        started.delete_all_cookies()
        started.set_window_size(width, WINDOW[1])
        if dark:
            feature = [{"name": "prefers-color-scheme", "value": "dark"}]
            started.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        if not scripts:
            started.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        complaints(started)  # of the window before
        yield started
    finally:
        started.execute_cdp_cmd("Network.clearBrowserCookies", {})
        started.close()
        started.switch_to.window(home)


def complaints(opened: Chrome) -> list[str]:
    """Return what the browser's console complained of: script errors, refused styles, what could not be loaded."""
    return [
        str(entry["message"])
        for entry in opened.get_log("browser")  # type: ignore[no-untyped-call]
        if entry["level"] in ("SEVERE", "WARNING")
    ]
