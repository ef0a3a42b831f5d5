"""The page, served by the command and used in headless Chromium."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drmm_hf.data.scene_shapes import CATEGORIES

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the command serves the page."""
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    log = tmp_path_factory.mktemp("served") / "log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "DRMM_CHECKPOINT": str(checkpoint)}
    with log.open("w") as output:
        command = [sys.executable, ROOT / "scripts" / "demo.py", "--device", "cpu"]
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield _wait_for_address(server, log)
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_for_address(server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(600):
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found[0]
        if server.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail(f"the demo did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_used(address: str, browser: Any, width: int) -> None:
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": width, "height": 844})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    expect(page.locator("#expected")).to_contain_text("A score is its own expected precision")
    page.locator("#threshold input[type=number]").fill("0")
    page.locator("#examples button:has(img)").first.click()
    summary = page.locator("#summary")
    number = 12 * len(CATEGORIES)
    expect(summary).to_contain_text(f"{number} detections above 0.00")
    expect(page.locator("#table")).to_contain_text("±")
    before = page.locator("#output img").get_attribute("src")

    assert not page.locator("#nms input").is_checked()
    expect(summary).not_to_contain_text("NMS")
    page.locator("#nms input").check()
    expect(summary).to_contain_text("NMS at IoU 0.5 would")
    page.locator("#level").get_by_label("90%").check()
    expect(summary).to_contain_text("probability of 90%")
    expect(page.locator("#output img")).not_to_have_attribute("src", str(before))
    page.locator("#threshold input[type=number]").fill("1")
    expect(summary).to_contain_text("No detection has a score above 1.00")

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    assert errors == []
    page.close()


def test_a_file_that_is_no_picture_leaves_the_page_working(address: str, browser: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page = browser.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    page.goto(address)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    page.locator("#input input[type=file]").set_input_files(damaged)
    expect(page.get_by_text("damaged.png: the image cannot be decoded (not a readable image)").first).to_be_visible()
    page.locator("#examples button:has(img)").nth(1).click()
    expect(page.locator("#summary")).to_contain_text(re.compile("detection", re.IGNORECASE))
    assert urllib.request.urlopen(address).status == 200
    page.close()
