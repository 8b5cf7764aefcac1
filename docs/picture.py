"""Takes the README's picture: the first screen of a fresh demonstration's report."""

import base64
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from reports.demo.train import fresh_folder, train
from reports.report import Report

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)
WIDTH, HEIGHT = 860, 1180
TARGET = Path(__file__).resolve().with_name("report.png")


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser without a window, which forgets everything."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield browser
    finally:
        browser.quit()


def photograph(browser: webdriver.Chrome, page: Path, target: Path, scale: float, scheme: str = "light") -> None:
    """The first screen of a page, as a PNG."""
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": scale, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
    browser.get(page.resolve().as_uri())
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    target.write_bytes(base64.b64decode(shot["data"]))


def main() -> None:
    """Train, report, and photograph the page."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        folder = Path("demo")
        fresh_folder(folder)
        page = Report.from_run(train(folder).run).save(folder / "report.html")
        with chromium(Path(name, "profile")) as browser:
            photograph(browser, page, TARGET, scale=1.5)


if __name__ == "__main__":
    main()
