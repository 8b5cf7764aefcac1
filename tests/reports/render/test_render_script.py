"""What the page's script adds: values read by pointer and by keyboard, the other scale, curves hidden, plain CSV.

The page is whole without it, and with it passes the accessibility rules of axe-core.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
from browsing import installed, show
from sample_report import CSV, HOSTILE, STEPS
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

pytestmark = installed


def plot(browser, name: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, f"#figure-{name} .plot.live:not([hidden])")


def reading(browser, name: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, f"#figure-{name} .reading").text.replace("\u202f", "")


def tool(browser, name: str, text: str) -> WebElement:
    tools = browser.find_elements(By.CSS_SELECTOR, f"#figure-{name} .tools button")
    return next(each for each in tools if each.text == text)


def focused(browser, pages, name: str) -> WebElement:
    show(browser, pages["sick"], 1280, "light")
    found = plot(browser, name)
    browser.execute_script("arguments[0].focus()", found)
    return found


def test_keys_read_the_values_that_the_table_has(browser, pages, sick):
    rows = next(figure for figure in sick.figures if figure.id == "sharpness-ratio").table.rows
    found = focused(browser, pages, "sharpness-ratio")
    found.send_keys(Keys.HOME)
    assert reading(browser, "sharpness-ratio").startswith("step 0 ")
    found.send_keys(Keys.END)
    last = reading(browser, "sharpness-ratio")
    assert last.startswith(f"step {STEPS[-1]} ")
    assert float(last.rsplit(" ", 1)[1]) == pytest.approx(float(rows[-1][1]), rel=1e-3)
    found.send_keys(Keys.ESCAPE)
    assert reading(browser, "sharpness-ratio") == ""


def test_pointer_reads_where_it_is(browser, pages):
    found = focused(browser, pages, "sharpness-ratio")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    ActionChains(browser).move_to_element(found).perform()
    step = int(reading(browser, "sharpness-ratio").split(" ")[1])
    assert 2000 < step < 3000
    marks = browser.execute_script(
        "const box = arguments[0].getBoundingClientRect(), spot = arguments[0].querySelector('.spot');"
        "const at = spot.getBoundingClientRect(); return [at.left - box.left, at.top - box.top, box.width, box.height]",
        found,
    )
    assert abs(marks[0] / marks[2] - 0.5) < 0.05
    assert 0 < marks[1] < marks[3]


def test_other_scale_is_another_drawing_of_the_same_values(browser, pages):
    found = focused(browser, pages, "effective-rates")
    found.send_keys(Keys.HOME)
    before = reading(browser, "effective-rates")
    tool(browser, "effective-rates", "Linear scale").click()
    other = plot(browser, "effective-rates")
    assert other != found
    assert not found.is_displayed()
    browser.execute_script("arguments[0].focus()", other)
    other.send_keys(Keys.HOME)
    assert reading(browser, "effective-rates") == before


def test_curves_are_hidden_by_name_whatever_the_name(browser, pages):
    found = focused(browser, pages, "effective-rates")
    curves = f"return [...document.querySelectorAll('[data-curve]')].filter(e => e.dataset.curve === {HOSTILE!r})"
    assert len(browser.execute_script(curves)) == 2  # one in the drawing on either scale
    tool(browser, "effective-rates", HOSTILE).click()
    assert all(not each.is_displayed() for each in browser.execute_script(curves))
    browser.execute_script("arguments[0].focus()", found)
    found.send_keys(Keys.HOME)
    assert HOSTILE not in reading(browser, "effective-rates")
    assert "head" in reading(browser, "effective-rates")
    tool(browser, "effective-rates", HOSTILE).click()
    assert browser.execute_script(curves)[0].is_displayed()
    assert browser.get_log("browser") == []


def test_records_come_as_plain_csv(browser, pages, tmp_path: Path):
    show(browser, pages["sick"], 1280, "light")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.find_element(By.ID, "csv").click()
    for _ in range(100):
        if (tmp_path / "records.csv").exists():
            break
        time.sleep(0.05)
    assert (tmp_path / "records.csv").read_text() == CSV


def test_without_scripts_nothing_is_lost(browser, pages):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, pages["sick"], 390, "dark")
        assert browser.find_elements(By.CSS_SELECTOR, ".tools, .reading") == []
        link = browser.find_element(By.ID, "csv")
        assert link.get_attribute("download") == "records.csv.gz"
        assert len(browser.find_elements(By.CSS_SELECTOR, "#figure-sharpness-ratio .plot:not([hidden]) svg")) == 1
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("name", ["sick", "empty"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_passes_the_accessibility_rules(browser, pages, name, scheme):
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe-core is not installed")
    show(browser, pages[name], 1280, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    rules = (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(rules)
    browser.set_script_timeout(240)
    result = browser.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in result["violations"]] == []
    assert len(result["passes"]) > 10
