"""Chromium around the page: used by `browser_*.py`, which `make test-browser` runs.

Whatever a visit does, the page must neither complain on its console, nor break its own content
policy, nor ask another host for anything.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

PATIENCE_MS = 120_000  # for what must happen; a busy machine takes its time
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
REFUSED = "Failed to load resource: the server responded with a status of "


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    expect.set_options(timeout=PATIENCE_MS)
    arguments = ["--disable-dev-shm-usage", "--host-resolver-rules=MAP litevl.example 127.0.0.1"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # it refuses to run as root with one
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(channel=None, executable_path=_find(), args=arguments)
        yield browser
        browser.close()


def _find() -> str:
    folders = os.environ["PATH"].split(os.pathsep)
    found = (os.path.join(folder, "chromium") for folder in folders)
    return next(path for path in found if os.access(path, os.X_OK))


@contextmanager
def visit(
    browser: Browser, url: str, *, key: str = "", refusals: tuple[int, ...] = (), **options: Any
) -> Iterator[Page]:
    """The page of a server, with the key in its fragment; `refusals` are statuses that it meets."""
    context = browser.new_context(
        **{"locale": "en-US", "viewport": DESKTOP, "reduced_motion": "reduce", **options}
    )
    context.set_default_timeout(PATIENCE_MS)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    faults: list[str] = []

    def hear(message: Any) -> None:
        expected = any(message.text.startswith(f"{REFUSED}{status} ") for status in refusals)
        gone = 0 in refusals and "net::ERR_" in message.text
        if message.type in ("error", "warning") and not (expected or gone):
            faults.append(message.text)

    def watch(request: Any) -> None:
        there = urlsplit(request.url)
        if there.scheme not in ("data", "blob") and there.netloc != urlsplit(url).netloc:
            faults.append(f"asked {request.url}")

    page.on("console", hear)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", watch)
    page.goto(f"{url}/#key={key}" if key else url)
    yield page
    context.close()
    assert faults == []


def open_view(page: Page, name: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.get_by_role("button", name="Send").click()


def last_answer(page: Page) -> Locator:
    return page.locator(".reply .text").last


def wait_for_end(page: Page) -> None:
    expect(page.locator(".reply").last).to_have_attribute("aria-busy", "false")


def clipboard(page: Page) -> str:
    return str(page.evaluate("navigator.clipboard.readText()"))


def copied(page: Page, button: Locator) -> str:
    """What a button puts into the clipboard."""
    page.evaluate("navigator.clipboard.writeText('')")
    button.click()
    page.wait_for_function("navigator.clipboard.readText().then((text) => text !== '')")
    return clipboard(page)


def body_of(curl: str) -> dict[str, Any]:
    """The body inside a copied curl line."""
    start = curl.index("-d '") + 4
    body: dict[str, Any] = json.loads(curl[start : curl.rindex("'")].replace(r"'\''", "'"))
    return body
