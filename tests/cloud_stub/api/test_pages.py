"""The pages in a real browser: read without scripts, followed live with them, and one deployment created."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi import FastAPI
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from cloud_stub.api.access import Role
from cloud_stub.core.commands import CreateDeployment, WithdrawUpdate
from cloud_stub.core.rows import AssignmentState
from protocol.outcomes import Party, Reason
from tests.browser import browser, complaints, tab
from tests.cloud_stub.api import samples
from tests.cloud_stub.api.conftest import Caller, client_of
from tests.cloud_stub.api.fakes import DirectService
from tests.cloud_stub.api.server import SETUP_CODE, TOKENS, Served, served
from tests.waiting import until

PATHS = ("/", "/devices?group=north", "/devices/north-001", "/updates", "/updates/acme/pump/2.0",
         "/updates/acme/pump/0.9", "/deployments",
         "/deployments/d1", "/deployments/d1/devices", "/deployments/new",
         "/deployments/plan?group=north&update=acme/pump:2.0&rollback_to=acme/pump:1.0", "/audit")  # fmt: skip

# An alert's parts are set apart from each other: a sentence that is not one part is torn.
TORN_SENTENCES = """return [...document.querySelectorAll('.alert')].filter(alert =>
    [...alert.childNodes].some(part => part.nodeType === Node.TEXT_NODE && part.data.trim())
).map(alert => alert.innerText)"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Have one browser for all pages: it takes longer to start than they do."""
    with browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def ids(service: DirectService) -> list[str]:
    """Have a fleet of twenty on version 1 and version 2 offered to it; four have failed."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    ids = samples.fleet(service, "north", 60, one)
    made = samples.deployed(service, "north")
    assert made.id == "d1"
    samples.settle(
        service, "d1", ids[:4], AssignmentState.FAILED, reason=Reason.HEALTH_FAILED, party=Party.UPDATE
    )
    return ids


@pytest.fixture
def at(service: DirectService, ids: list[str]) -> Iterator[Served]:
    """Serve the pages."""
    with served(service) as found:
        yield found


@pytest.mark.slow
@pytest.mark.browser
def test_every_page_is_read_in_a_browser_without_complaints(
    at: Served, service: DirectService, chromium: Chrome
) -> None:
    """Signed in by the printed address; no script error, nothing refused or missing, nothing wider than a phone."""
    samples.imported(service, "0.9")
    service.do(WithdrawUpdate("acme/pump:0.9", "it leaks"), "test")
    with tab(chromium, width=500) as opened:
        opened.get(at.login())
        until(lambda: opened.current_url == f"{at.url}/", "the overview")
        for path in PATHS:
            opened.get(at.url + path)
            assert complaints(opened) == [], path
            wide = "return document.documentElement.scrollWidth - window.innerWidth"
            assert opened.execute_script(wide) <= 0, path
            assert len(opened.find_elements(By.TAG_NAME, "h1")) == 1, path
            assert opened.find_elements(By.CSS_SELECTOR, "button:empty, a:empty, img:not([alt])") == [], path
            assert opened.execute_script(TORN_SENTENCES) == [], path


@pytest.mark.browser
def test_a_deployment_is_followed_live(
    at: Served, service: DirectService, ids: list[str], chromium: Chrome
) -> None:
    """The page's sentences and bar follow the rows, without being loaded again and without losing an open part."""
    with tab(chromium) as opened:
        opened.get(at.login())
        opened.get(f"{at.url}/deployments/d1")
        until(lambda: "4 of 60 failed (6.7 %); goes back at 6." in _text(opened), "the policy's sentence")
        opened.find_element(By.CSS_SELECTOR, "details summary").click()
        opened.execute_script("window.kept = true")
        samples.settle(
            service, "d1", ids[4:5], AssignmentState.FAILED, reason=Reason.NETWORK, party=Party.NETWORK
        )
        samples.settle(service, "d1", ids[5:55], AssignmentState.SUCCEEDED)
        until(lambda: "50 devices run it, 5 not begun, 5 failed." in _text(opened), "the new headline")
        assert "the network's: not counted" in _text(opened)
        bar = opened.find_element(By.CSS_SELECTOR, ".big .bar .good")
        assert float(bar.get_attribute("width") or 0) == pytest.approx(100 * 50 / 60, abs=0.01)
        assert opened.execute_script("return window.kept") is True
        assert opened.find_element(By.TAG_NAME, "details").get_attribute("open") is not None
        assert complaints(opened) == []


@pytest.mark.browser
def test_a_deployment_is_created_from_its_plan(at: Served, service: DirectService, chromium: Chrome) -> None:
    """Form, plan, one confirm: what is created is what was shown, with the policy that the form said."""
    with tab(chromium) as opened:
        opened.get(at.login())
        opened.get(f"{at.url}/deployments/new")
        Select(opened.find_element(By.NAME, "update")).select_by_value(samples.TWO)
        opened.find_element(By.NAME, "group").send_keys("north")
        Select(opened.find_element(By.NAME, "rollback_to")).select_by_value(samples.ONE)
        opened.find_element(By.CSS_SELECTOR, "button.primary").click()
        until(lambda: "The plan" in _text(opened), "the plan")
        assert "with 60 compatible members that is 6 failed" in _text(opened)
        assert "Deployment d1 is active in the group and will be superseded" in _text(opened)
        opened.find_element(By.CSS_SELECTOR, "button.primary").click()
        until(lambda: opened.current_url == f"{at.url}/deployments/d2", "the deployment's page")
        assert "Supersedes\nd1" in _text(opened)
    with service.read() as reader:
        made = reader.deployment("d2")
    assert made is not None
    assert made.policy is not None
    assert (made.policy.failed_count, made.policy.failed_percent, made.created_by) == (5, 10, "set-up code")


@pytest.mark.browser
def test_pages_are_read_without_scripts_and_in_the_dark(at: Served, chromium: Chrome) -> None:
    """Numbers, slots and forms are the server's own HTML; the dark colours are the reader's choice."""
    with tab(chromium, scripts=False, dark=True) as opened:
        opened.get(f"{at.url}/login")
        opened.find_element(By.NAME, "token").send_keys(TOKENS[Role.VIEWER])
        opened.find_element(By.CSS_SELECTOR, "button.primary").click()
        until(lambda: opened.current_url == f"{at.url}/", "the overview")
        assert "4 of 60 failed" in _text(opened)
        opened.get(f"{at.url}/devices/north-001")
        assert "last known good" in _text(opened)
        ground = opened.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
        assert ground == "rgba(20, 24, 22, 1)"
        assert opened.find_elements(By.NAME, "group") == []  # a viewer moves nothing


def test_a_plan_that_has_changed_is_shown_anew(
    app_page: Caller, service: DirectService, ids: list[str]
) -> None:
    """The confirm of an outdated plan creates nothing, says so, and carries the new digest."""
    page = app_page
    fields = {"group": "north", "update": samples.TWO, "rollback_to": samples.ONE, "plan_digest": "outdated"}
    csrf = page.get("/").text.split('name="csrf" value="')[1].partition('"')[0]
    answer = page.post("/deployments", data={**fields, "csrf": csrf}, headers={"Origin": "http://cloud:8080"})
    assert answer.status_code == 409
    assert "look at the plan again" in answer.text
    assert 'name="plan_digest" value="outdated"' not in answer.text
    assert sum(isinstance(command, CreateDeployment) for command, _ in service.asked) == 2
    with service.read() as reader:
        assert reader.deployment("d2") is None


def test_what_devices_write_is_no_markup(app_page: Caller, service: DirectService, ids: list[str]) -> None:
    """Properties, tags and reasons come from devices, and are shown as text."""
    hostile = "<script>alert(1)</script>"
    with service.rows() as unit:
        row = unit.device(ids[0])
        assert row is not None
        slots = {"A": {"holds": "bad", "update": "acme/pump:1.0", "reason": hostile}}
        unit.put_device(replace(row, tags={hostile: hostile}, slots=slots, agent_version=hostile))
    page = app_page.get(f"/devices/{ids[0]}").text
    assert hostile not in page
    assert page.count("&lt;script&gt;") == 4


def test_devices_are_found_by_the_beginning_of_their_id(app_page: Caller, ids: list[str]) -> None:
    """Within a group or without, and what does not begin so is left out."""
    for query in ({"search": "north-05"}, {"search": "north-05", "group": "north"}):
        page = app_page.get("/devices", params=query).text
        assert [device for device in ids if f'href="/devices/{device}"' in page] == ids[49:59]
    assert "No device fits" in app_page.get("/devices", params={"search": "x"}).text
    exact = app_page.get("/devices", params={"search": ids[3]}).text
    assert exact.count('href="/devices/north-') == 1


def test_a_refusal_is_a_page_with_one_sentence(app_page: Caller) -> None:
    """And keeps the navigation."""
    page = app_page.get("/devices/unknown")
    assert page.status_code == 404
    assert "Device unknown is unknown" in page.text
    assert 'href="/deployments"' in page.text


@pytest.fixture
def app_page(app: FastAPI) -> Caller:
    """Be signed in, without a browser."""
    page = client_of(app, None)
    page.get("/login", params={"code": SETUP_CODE})
    return page


def _text(opened: Chrome) -> str:
    """Return what the page says; nothing while the browser goes from one page to the next."""
    try:
        return str(opened.find_element(By.TAG_NAME, "body").text)
    except (NoSuchElementException, StaleElementReferenceException):
        return ""
