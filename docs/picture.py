"""Takes the README's picture: the first screen of a fresh demonstration's report."""

import base64
import os
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from reports.demo.train import fresh_folder, train
from reports.report import Report

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


def main() -> None:
    """Train, report, and photograph the page."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        folder = Path("demo")
        fresh_folder(folder)
        page = Report.from_run(train(folder).run).save(folder / "report.html").resolve()
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS, f"--user-data-dir={name}/profile"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1.5, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.as_uri())
            shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        finally:
            browser.quit()
        TARGET.write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main()
