"""A headless Chromium for the tests that look at pages, or a skip that says what is missing."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """Path of the browser: the environment's CHROMIUM, else the first of its usual names on PATH; else skip."""
    asked = os.environ.get("CHROMIUM")
    found = shutil.which(asked) if asked else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(
            f"no browser: CHROMIUM is {asked!r}" if asked else f"no browser: none of {', '.join(NAMES)} on PATH"
        )
    return found


def browse(url: str, *arguments: str, width: int = 1200, height: int = 1600) -> str:
    """Open a page, run `arguments` (such as --dump-dom or --screenshot=FILE) on it, and return what it printed."""
    browser = chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
            "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}",
            f"--window-size={width},{height}", *arguments, url,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def screenshot(page: Path, to: Path, *, width: int = 1200, height: int = 1600) -> Path:
    """Photograph a page on disk."""
    browse(page.resolve().as_uri(), f"--screenshot={to}", width=width, height=height)
    return to
