"""tools/app.py: a real browser and an unfriendly program visit its server."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.predictor_fixture import write_video

pytest.importorskip("av", reason="needs the extra [demo]")
pytest.importorskip("supervision", reason="needs the extra [demo]")
pytest.importorskip("gradio", minversion="6.31", reason="needs the extra [demo]")

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds; a busy machine fails no test
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()
# Writes down each address that a process connects to.
SPY = """
import os, socket
connect = socket.socket.connect
def connect_and_note(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["SPY"], "a") as file:
            file.write(f"{address[0]}\\n")
    return connect(self, address)
socket.socket.connect = connect_and_note
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Iterator[SimpleNamespace]:
    """A running server that takes files of 1 MB and 300 frames.

    Its address, process, folder of temporary files, list of calls, and output.
    """
    folder = tmp_path_factory.mktemp("app")
    (folder / "spy").mkdir()
    (folder / "spy" / "sitecustomize.py").write_text(SPY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "tools" / "app.py", "--weights", trained, "--port", port]
    command += ["--device", "cpu", "--score-threshold", 0]
    command += ["--max-upload-mb", 1, "--max-frames", 300]
    (folder / "temporary").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder / "spy"), os.environ["PYTHONPATH"]]),
        "SPY": str(folder / "calls.txt"),
        "TMPDIR": str(folder / "temporary"),
        "GRADIO_SHARE": "True",  # the tool has to ignore it
    }
    log = folder / "output.txt"
    output = log.open("w")
    process = subprocess.Popen(
        list(map(str, command)), stdout=output, stderr=output, cwd=folder, env=environment
    )
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + PATIENCE
    try:
        while f"{address}/ " not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield SimpleNamespace(
            address=address,
            process=process,
            temporary=folder / "temporary",
            calls=folder / "calls.txt",
            output=log,
        )
    finally:
        process.kill()
        process.wait()
        output.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"needs a browser: {', '.join(names)} (on Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_a_visit(browser, server, make_frames: Callable, tmp_path: Path) -> None:
    """A visit from the upload to the download, with all mistakes in between."""
    video_file = write_video(tmp_path / "my video.mp4", make_frames(30))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "large.mp4").write_bytes(bytes(1_200_000))
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(1000 * PATIENCE)
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.goto(server.address)
    find = page.get_by_role("button", name="Find")
    words = page.get_by_label("Words, with commas")

    def upload(path: Path) -> None:
        if (clear := page.locator("#upload").get_by_label("Clear")).count():
            clear.click()
        page.locator("#upload input[type=file]").set_input_files(path)

    def message(text: str) -> None:
        page.get_by_test_id("toast-body").filter(has_text=text).wait_for()

    find.click()
    message("No file yet")
    upload(tmp_path / "large.mp4")
    message("maximum allowed size")
    upload(tmp_path / "text.mp4")
    page.get_by_label("text.mp4").wait_for()
    find.click()
    message("text.mp4")
    upload(video_file)
    page.get_by_label("my video.mp4").wait_for()
    words.fill(" , ")
    find.click()
    message("No words yet")
    words.fill("<img src=x onerror=alert(1)>.txt")
    find.click()
    message("<img src=x onerror=alert(1)>.txt")

    words.fill("dog, ${alert(2)}, <img src=x onerror=alert(3)>")
    find.click()
    result = page.frame_locator("iframe.result")
    video = result.locator("video")
    video.wait_for()
    duration = "v => new Promise(done => {if (v.duration) done(v.duration); v.ondurationchange = "
    duration += "() => done(v.duration)})"
    assert video.evaluate(duration) == pytest.approx(3, abs=0.2)
    video.evaluate("v => v.play()")
    page.wait_for_timeout(300)
    assert video.evaluate("v => v.currentTime") > 0
    video.evaluate("v => v.pause()")
    text = result.locator("body").inner_text()
    assert "dog" in text and "in 30 frames, 3.0 s" in text
    assert "${alert(2)}" in text and "<img src=x onerror=alert(3)>" in text
    rows = result.locator("tr")
    assert rows.count() > 0 and re.match(r"[01]\.\d\d", rows.first.locator(".score").inner_text())
    assert rows.first.locator("img").evaluate("image => image.naturalWidth") > 0
    rows.first.locator("svg").click(position={"x": 5, "y": 10})
    assert video.evaluate("v => v.currentTime") < 1
    page.screenshot(path=tmp_path / "page.png")

    with page.expect_download() as download:
        page.locator("a[download='annotations.json']").click()
    content = json.loads(Path(download.value.path()).read_text())
    assert content["categories"][0]["name"] == "dog" and content["videos"][0]["length"] == 30
    page.close()
    assert problems == [] and "Traceback" not in server.output.read_text()
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {
        server.address.split("/")[2]
    }


@pytest.mark.slow
def test_stopping_and_leaving(browser, server, make_frames: Callable, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", make_frames(400))
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(server.address)
    page.locator("#upload input[type=file]").set_input_files(video)
    page.get_by_label("long.mp4").wait_for()
    before = set(server.temporary.rglob("index.html"))
    page.get_by_role("button", name="Find").click()
    page.get_by_text(re.compile(r"looking - \d")).wait_for()
    page.get_by_role("button", name="Stop").click()
    result = page.frame_locator("iframe.result")
    result.get_by_text("Interrupted").wait_for()
    (stopped,) = set(server.temporary.rglob("index.html")) - before
    page.get_by_role("button", name="Find").click()
    page.get_by_text(re.compile(r"looking - \d")).wait_for()
    page.close()
    end = time.monotonic() + PATIENCE
    while not (left := set(server.temporary.rglob("index.html")) - before - {stopped}):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert "Interrupted" in left.pop().read_text()


@pytest.mark.slow
def test_requests_of_a_program(server, make_frames: Callable, tmp_path: Path) -> None:
    """One request at a time, no file but the visitor's own, no way around the queue."""
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    video = write_video(tmp_path / "my.mp4", make_frames(20))
    patient = {"timeout": PATIENCE}
    client = Client(server.address, verbose=False, download_files=False, httpx_kwargs=patient)
    jobs = [client.submit(handle_file(video), word, 0, 2, api_name="/find") for word in ("a", "b")]
    for job, word in zip(jobs, "ab", strict=True):
        view, files = job.result(timeout=PATIENCE)
        assert f"Words (1): {word}" in view and "10 frames" in view and len(files) == 4
    with pytest.raises(AppError, match="No words yet"):
        client.predict(handle_file(video), None, 0, 2, api_name="/find")
    secret = tmp_path / "secret.mp4"
    shutil.copy(video, secret)

    def ask(path: str, data: bytes | None = None, kind: str = "application/json") -> tuple:
        address = f"{server.address}/gradio_api/{path}"
        request = urllib.request.Request(address, data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert ask(f"file={files[1]['path']}")[0] == 200
    for path in (secret, ROOT / "setup.py", server.output, "/etc/passwd"):
        assert ask(f"file={path}")[0] == 403, path
    named = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    request = json.dumps({"data": [named, "dog", 0, 1]}).encode()
    assert ask("run/find", request)[0] in (401, 404)  # around the queue
    event = json.loads(ask("call/find", request)[1])["event_id"]
    assert "event: error" in ask(f"call/find/{event}")[1]
    upload = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    upload += bytes(1_200_000) + b"\r\n--x--\r\n"
    code, text = ask("upload", upload, "multipart/form-data; boundary=x")
    assert code == 413 and "maximum allowed size" in text


@pytest.mark.slow
def test_the_server_calls_nobody_and_leaves_nothing(server) -> None:
    """Has to be the last test of this file: it ends the server."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    assert set(server.calls.read_text().split()) == {"127.0.0.1"}
    assert list(server.temporary.iterdir()) == []
