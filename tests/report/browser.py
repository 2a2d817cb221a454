"""Opens a page in headless Chromium and asks it what it shows."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Before anything else on the page: what fails, scripts and resources alike. When all has loaded:
# every heading is clicked, as a reader might, and the findings go where they can be read.
_COLLECTOR = """<script>
const failures = [];
addEventListener("error", event =>
  failures.push((event.message || event.target.outerHTML).slice(0, 300)), true);
addEventListener("load", () => {
  for (const head of document.querySelectorAll("th")) { head.click(); head.click(); }
  const columns = [...document.querySelectorAll("table")].map(table =>
    [...table.tBodies[0].rows].map(row => row.lastElementChild.textContent));
  const images = [...document.images].map(image => [image.alt, image.naturalWidth]);
  document.documentElement.dataset.found = JSON.stringify({failures, images, columns});
});
</script>
"""


def find_chromium() -> str:
    """The browser, of the environment variable CHROMIUM or on PATH; else the test is skipped."""
    named = os.environ.get("CHROMIUM", "")
    found = next(filter(None, map(shutil.which, [named] if named else _NAMES)), None)
    if found is None:
        pytest.skip("needs Chromium: install it, or name it in the environment variable CHROMIUM")
    return found


def open_page(page: Path, *options: str) -> tuple[str, str]:
    """The document after its scripts ran, and what the browser logged on its console."""
    with tempfile.TemporaryDirectory() as profile:
        result = subprocess.run(
            [
                *(find_chromium(), "--headless", "--no-sandbox", "--disable-gpu"),
                *("--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}"),
                *("--enable-logging=stderr", "--virtual-time-budget=10000", *options),
                *("--dump-dom", page.absolute().as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return result.stdout, "\n".join(console)


def asked(page: Path, copy: Path) -> dict[str, Any]:
    """What a copy of the page says of itself: `failures`, `images`, and the last `columns`.

    The copy lets the question run as a script, which the page itself forbids.
    """
    text = re.sub(r"; script-src '[^']*'", "", page.read_text(encoding="utf-8"))
    text = text.replace("default-src 'none'", "default-src 'unsafe-inline'")
    copy.write_text(text.replace("<head>", f"<head>{_COLLECTOR}", 1), encoding="utf-8")
    document, _ = open_page(copy)
    found = re.search(r'data-found="([^"]*)"', document)
    assert found, document[:2000]
    return json.loads(html.unescape(found[1]))
