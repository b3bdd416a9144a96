"""Debian's Chromium, driven by Playwright, which brings none of its own here and downloads nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.debian import program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def _chromium() -> Path | None:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return Path(found) if found else None


@contextmanager
def started() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    chromium = program(_chromium, "chromium")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # the sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


class Reader:
    """A page as a reader has it open. said: what went to the console. fetched: what was asked for but the page."""

    def __init__(self, browser: "Browser", address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.fetched: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(address)
        self.fetched = [url for url in self.fetched if url != address]

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.context.close()

    def violations(self) -> list[str]:
        """What axe finds wrong with the page as it is shown now: the rule and the elements."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{item['id']}: {[node['html'][:200] for node in item['nodes'][:3]]}" for item in found]
