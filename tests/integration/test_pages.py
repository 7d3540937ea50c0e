"""The pages of a cloud as `lastgood cloud up` serves them, in a real browser; what they show is tested on samples."""

import re
from pathlib import Path

import pytest

from tests.browser import browser, complaints, tab
from tests.processes import Cloud, beacon
from tests.waiting import until


@pytest.mark.browser
def test_the_pages_of_a_cloud_are_read_without_complaints(tmp_path: Path) -> None:
    """Signed in by the printed address, which is good for one time: nothing missing, nothing from elsewhere."""
    with browser(tmp_path / "chromium") as chromium, Cloud(tmp_path / "data") as cloud:
        cloud.add("pi-1")
        update = cloud.take(beacon("1.0.0"))
        deployment = cloud.deploy("$default", update)
        login = re.findall(r"^pages +(\S+)$", cloud.log, re.MULTILINE)[0]
        home = login.partition("/login")[0]
        with tab(chromium) as opened:
            opened.get(login)
            until(lambda: opened.current_url == f"{home}/", "the overview")
            for path in (
                "/",
                "/devices",
                "/devices/pi-1",
                "/updates",
                f"/deployments/{deployment}",
                "/deployments/new",
            ):
                opened.get(home + path)
                assert complaints(opened) == [], path
                assert opened.find_elements("css selector", "h1"), path
        with tab(chromium) as stranger:
            stranger.get(login)
            assert "/login" in stranger.current_url
