"""A window of a headless Chromium, and what a person does in it: look for text, click, fill in, take a picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from system.airflow_processes import DeploymentError, wait_for

IMAGES = Path(__file__).parents[3] / "docs" / "images"
WIDTH, HEIGHT = 1280, 900

T = TypeVar("T")


class Window:
    """The window.

    :param driver: Selenium's.
    :param pictures: where the pictures go.
    """

    def __init__(self, driver: webdriver.Chrome, pictures: Path) -> None:
        self.driver = driver
        self.pictures = pictures

    def open(self, url: str) -> None:
        """Go to an address."""
        self.driver.get(url)

    @property
    def text(self) -> str:
        """All that can be read in the window."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def wait_for(self, condition: Callable[[], T], what: str) -> T:
        """Wait until a condition is true, and return its value; a page that changes meanwhile is no error."""

        def value() -> T:
            try:
                return condition()
            except WebDriverException as error:
                raise AssertionError(error.msg) from None

        try:
            return wait_for(value, what)
        except DeploymentError as error:
            self.driver.save_screenshot(str(self.pictures / "not-there.png"))
            raise DeploymentError(f"{error}\n--- {self.driver.current_url}\n{self.text[:4000]}") from None

    def wait_for_text(self, *texts: str) -> str:
        """Wait until all of these can be read, and return all that can be."""

        def there() -> str:
            text = self.text
            assert not (missing := [wanted for wanted in texts if wanted not in text]), f"missing {missing}"
            return text

        return self.wait_for(there, f"text {texts} in the window")

    def all(self, css: str, text: str = "") -> list[WebElement]:
        """Return the elements that can be seen now.

        :param css: their selector.
        :param text: what they say.
        """
        found = self.driver.find_elements(By.CSS_SELECTOR, css)
        return [one for one in found if one.is_displayed() and text in one.text]

    def find(self, css: str, text: str = "") -> WebElement:
        """Wait for an element, and return it; see :meth:`all`."""
        return self.wait_for(lambda: self.all(css, text), f"{css} {text!r} in the window")[0]

    def click(self, css: str, text: str = "", until: str | None = None) -> None:
        """Click an element as soon as that is possible; see :meth:`all`.

        :param until: what can be seen afterwards; until then, the element is clicked again.
        """

        def clicked() -> bool:
            if until and self.all(until):
                return True
            found = self.all(css, text)
            assert found, "it cannot be seen"
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found[0])
            found[0].click()
            return not until or bool(self.all(until))

        self.wait_for(clicked, f"click on {css} {text!r}")

    def fill_in(self, css: str, value: str) -> None:
        """Put a value into a field, in place of what is in there."""

        def filled() -> bool:
            field = self.find(css)
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(value)
            return field.get_property("value") == value

        self.wait_for(filled, f"{css} filled in")

    def follow(self, text: str) -> str:
        """Click a link, and return the address of the new tab that it opens; the tab is closed again."""
        here = self.driver.current_window_handle
        self.click("a", text)
        self.wait_for(lambda: len(self.driver.window_handles) > 1, f"new tab of {text!r}")
        (tab,) = {*self.driver.window_handles} - {here}
        self.driver.switch_to.window(tab)
        address = self.wait_for(
            lambda: self.driver.current_url.removeprefix("about:blank"), f"address of {text!r}"
        )
        self.driver.close()
        self.driver.switch_to.window(here)
        return address

    def picture(self, name: str, height: int = HEIGHT, fit: str | None = None) -> None:
        """Take a picture, for the project's documentation if ``UPDATE_SCREENSHOTS`` is 1.

        :param height: of the window, for a page that is longer or shorter than others.
        :param fit: the button that fits what is shown into a window of another height.
        """
        directory = IMAGES if os.environ.get("UPDATE_SCREENSHOTS") == "1" else self.pictures
        directory.mkdir(parents=True, exist_ok=True)
        # The window's size counts in the frame, which even a headless browser has.
        metrics = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        if fit:
            self.click(fit)
        # Twice: once laid out, once painted.
        self.driver.execute_async_script(
            "const done = arguments[0]; document.fonts.ready.then(() => "
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 500))))"
        )
        self.driver.save_screenshot(str(directory / f"{name}.png"))
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@contextmanager
def chromium(home: Path) -> Iterator[Window]:
    """Run a Chromium for a block.

    :param home: an empty directory to throw away, for its profile and the pictures.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium")
    for option in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "no-proxy-server",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no page of elsewhere is loaded
        "hide-scrollbars",
        "lang=en-US",
        f"user-data-dir={home / 'profile'}",
        f"window-size={WIDTH},{HEIGHT}",
    ):
        options.add_argument(f"--{option}")
    driver = webdriver.Chrome(options, Service(_program("chromedriver")))
    try:
        yield Window(driver, home)
    finally:
        driver.quit()


def _program(name: str) -> str:
    if found := shutil.which(name):
        return found
    raise DeploymentError(
        f"`{name}` is missing: these tests need a browser, on Debian the packages "
        "`chromium` and `chromium-driver`."
    )
