"""A headless Chromium for tests of pages: Debian's `chromium` and `chromium-driver`."""

import base64
import json
import os
import shutil
import time

import pytest

REQUIRED = "CIRCUITCORE_REQUIRE_CHROMIUM"  # set by `.ci/run`: no browser is then a failure
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
         "--hide-scrollbars", "--force-device-scale-factor=1")  # fmt: skip


def started():
    """A browser that runs; the test is skipped, or fails where it is required, if none can."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    lacks = [name for name, path in programs.items() if path is None]
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        lacks.append("the package selenium")
    if lacks:
        said = f"no {' and no '.join(lacks)}: apt-get install chromium chromium-driver"
        if os.environ.get(REQUIRED):
            pytest.fail(said)
        pytest.skip(said)
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Page(webdriver.Chrome(options, Service(programs["chromedriver"])))


class Page:
    """One tab: `open` a file, `run` JavaScript in it, look at what it said and asked for."""

    def __init__(self, driver):
        self.driver = driver
        self.devtools = driver.execute_cdp_cmd
        self.devtools("Network.enable", {})
        self.devtools(
            "Network.emulateNetworkConditions",
            {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
        )

    def open(self, path, scheme="light", width=1200, motion="reduce", script=True):
        """Open a file as a reader would, with a colour scheme and a width of the window."""
        self.media(scheme, motion)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", size)
        self.devtools("Emulation.setScriptExecutionDisabled", {"value": not script})
        self.driver.get("about:blank")
        self.said(), self.asked()
        self.driver.get(path.resolve().as_uri())
        return self

    def media(self, scheme="light", motion="reduce", kind=""):
        """What style sheets see: a colour scheme, whether motion is reduced, screen or print."""
        named = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        features = [{"name": name, "value": value} for name, value in named.items()]
        self.devtools("Emulation.setEmulatedMedia", {"media": kind, "features": features})

    def run(self, code, *given):
        """Run the body of a function in the page."""
        return self.driver.execute_script(code, *given)

    def find(self, selector):
        """Elements by CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def text(self, selector):
        """Text of the first one, as it is in the document."""
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def press(self, *keys):
        """Press keys, with the focus where it is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def said(self):
        """What the console was told since the last call."""
        return self.driver.get_log("browser")

    def asked(self):
        """Addresses asked for since the last call, not stopped by the policy, but the blank page's.

        Data stand there as ``data:...``.
        """
        told = [json.loads(each["message"])["message"]
                for each in self.driver.get_log("performance")]  # fmt: skip
        stopped = {m["params"]["requestId"] for m in told if m["method"] == "Network.loadingFailed"
                   and m["params"].get("blockedReason") == "csp"}  # fmt: skip
        sent = [m["params"] for m in told if m["method"] == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in sent if each["requestId"] not in stopped]
        return [url for url in urls if url != "about:blank"]

    def pdf(self):
        """The page, printed: bytes of a PDF."""
        return base64.b64decode(self.devtools("Page.printToPDF", {"printBackground": True})["data"])

    def until(self, code, seconds=10):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({code})"):
            assert time.monotonic() < end, f"not within {seconds} s: {code}"
            time.sleep(0.02)
