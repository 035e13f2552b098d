"""A page in a real browser: headless Chromium, cut off from any network, gives back the page as its script left it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.processes import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_LOADING = ("src", "href", "xlink:href", "srcset", "data", "poster", "action")


def chromium() -> str:
    """The browser's command; skips the test where there is none, which fails where CI=true."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = f"no browser to load the page in: none of {', '.join(NAMES)} is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI=true, but {reason}")
        pytest.skip(reason)
    return found


def headless(profile: Path) -> list[str]:
    """The browser's command, without a window, network or settings of its own.

    Args:
        profile: an empty folder for what the browser keeps.
    """
    return [
        chromium(),
        "--headless=new",
        "--no-sandbox",  # containers run as root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
    ]


@dataclass(frozen=True)
class Loaded:
    """What became of a page.

    Attributes:
        dom: its HTML after the script.
        console: messages of the console, errors and what the content security policy blocked among them.
    """

    dom: str
    console: list[str]

    @property
    def elements(self) -> list[tuple[str, dict[str, str]]]:
        """(tag, attributes) of every element, in order."""
        return elements(self.dom)

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


def load(page: Path, profile: Path) -> Loaded:
    """Load a file, let its script run for a while, and read the page back.

    Args:
        profile: an empty folder for what the browser keeps.
    """
    command = [
        *headless(profile),
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
        "--window-size=1200,1000",
        "--dump-dom",
        page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Loaded(done.stdout, console)


def elements(html: str) -> list[tuple[str, dict[str, str]]]:
    """(tag, attributes) of every element of a page, in order."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[str, dict[str, str]]] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, {name: value or "" for name, value in attributes}))

    reader = Reader()
    reader.feed(html)
    return reader.found


def outside(html: str) -> list[str]:
    """What a page would fetch: addresses in its attributes and styles that are not in the page or beside it."""
    found = [
        value
        for _, attributes in elements(html)
        for name, value in attributes.items()
        if name in _LOADING and re.match(r"(?i)\s*(?:[a-z][a-z0-9+.-]*:|//)", value) and not value.startswith("data:")
    ]
    return found + re.findall(r"(?i)(?:@import[^;]*|url\((?!\s*[\"']?(?:#|data:))[^)]*\))", html)
