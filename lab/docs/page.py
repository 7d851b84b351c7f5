"""A picture of the page at work, for the manual: the shipped tiers answer a text, a real Chromium shows it.

    python -m lab.docs.page [OUT.png]     default: docs/page.png

It needs the extra `dev` and a Chromium or Chrome on the PATH, so `make docs` does not run it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from lab.docs.measured import ROOT
from lab.live.stack import Layout, free_ports, running
from shared.errors import BadSetting

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1280, 1000  # pixels of the window; the picture is as high as the page
COLOURS = 256  # the manual's pages stay light
EXAMPLE = "Mixed"
PATIENCE_MS = 60_000.0


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of this machine, without a window.

    Raises:
        BadSetting: no playwright, or no browser on the PATH.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BadSetting("no playwright: pip install 'tierwise[dev]'") from error
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise BadSetting(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox does not work for root
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def draw(browser: Any, url: str, out: Path) -> None:
    """The page of the tier at `url` after a text was classified and the other policies were asked."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", reduced_motion="reduce")
    page.set_default_timeout(PATIENCE_MS)
    for _ in range(2):  # the first answers open connections; the tally of the second page knows nothing of them
        page.goto(url)
        page.get_by_role("button", name=EXAMPLE, exact=True).click()
        page.get_by_role("button", name="Classify").click()
        page.get_by_role("status").filter(has_text="answered by").wait_for()
        page.get_by_role("button", name="Ask them").click()
        page.get_by_role("status").filter(has_text="have answered").wait_for()
    page.evaluate("() => document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.screenshot(path=out, full_page=True)
    Image.open(out).quantize(COLOURS, kmeans=1).save(out, optimize=True)


def main(out: Path) -> None:
    """Start the tiers, take the picture, stop."""
    with running(Layout(port=free_ports(3)), Console()) as stack, chromium() as browser:
        draw(browser, stack.url, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "page.png")
