"""The page, served by the command and used in headless Chromium."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drmm_hf.data.scenes import CATEGORIES
from drmm_hf.demo import KEEP_FILES, MAX_UPLOAD, build_app
from drmm_hf.loading import load_detector

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


def test_an_upload_is_gone_when_the_server_stops(checkpoint: Path) -> None:
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    httpx = pytest.importorskip("httpx")
    picture = io.BytesIO()
    Image.new("RGB", (40, 20)).save(picture, "PNG")
    app = build_app(*load_detector(str(checkpoint), "cpu"))
    assert app.delete_cache == KEEP_FILES
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, max_file_size=MAX_UPLOAD, ssr_mode=False)
    try:
        upload = f"{url}gradio_api/upload"
        answer = httpx.post(upload, files={"files": ("a.png", picture.getvalue())})
        kept = Path(answer.json()[0])
        assert kept.read_bytes() == picture.getvalue()
        too_large = httpx.post(upload, files={"files": ("b.png", bytes(21 * 2**20))}, timeout=60)
        assert too_large.status_code == 413
    finally:
        app.close()
    assert not kept.exists()
