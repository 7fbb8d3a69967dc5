"""The live page in a real browser: headless Chromium, driven by its own protocol over a pipe."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from dreamlit.live import feed
from dreamlit.live.files import RunFolder
from dreamlit.live.server import PageServer
from live_runs import brief_goodbyes, emit, picture, preview_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium): the page was not looked at"
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio"),
)
PATIENCE_S = 60
goodbyes = pytest.fixture(scope="module", autouse=True)(brief_goodbyes)


class Browser:
    """One headless Chromium with one tab: DevTools' messages, each ended by a zero byte, over descriptors 3 and 4."""

    def __init__(self, home: pathlib.Path) -> None:
        read_there, self._write = os.pipe()
        self._read, write_there = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank"]
        shell = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "chromium", str(CHROMIUM), *flags],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_there)
        os.close(write_there)
        self._numbers, self._rest, self.complaints = itertools.count(1), b"", []
        self._session = None
        target = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def _message(self) -> dict:
        while b"\0" not in self._rest:
            more = os.read(self._read, 65536)
            assert more, "Chromium has ended"
            self._rest += more
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def ask(self, method: str, **params) -> dict:
        number = next(self._numbers)
        told = {"id": number, "method": method, "params": params}
        if self._session:
            told["sessionId"] = self._session
        os.write(self._write, json.dumps(told).encode() + b"\0")
        while (answer := self._message()).get("id") != number:
            self._hear(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _hear(self, event: dict) -> None:
        """Keeps what the page's console would show as an error or a warning."""
        name, data = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.complaints.append(data["exceptionDetails"])
        elif name == "Runtime.consoleAPICalled" and data["type"] in ("error", "warning", "assert"):
            self.complaints.append(data["args"])
        elif name == "Log.entryAdded" and data["entry"]["level"] in ("error", "warning"):
            self.complaints.append(data["entry"])

    def open(self, address: str, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        self.ask("Page.navigate", url="about:blank")  # so that an earlier page complains no more
        self.wait("location.href == 'about:blank'")
        self.complaints.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=address)

    def value(self, script: str):
        """What a JavaScript expression is on the page."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        """Until the expression is true; fails with what the page says."""
        end = time.monotonic() + PATIENCE_S
        while not self.value(script):
            assert time.monotonic() < end, (
                f"never: {script}\n{self.value('document.body.innerText')}\n{self.complaints}"
            )
            time.sleep(0.1)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._write)
        os.close(self._read)


SHOWN = "[...document.querySelectorAll('#pictures .row img')]"
LOADED = f"{SHOWN}.length && {SHOWN}.every((one) => one.complete && one.naturalWidth > 0)"
TEXT = "(document.body?.innerText ?? '')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("chromium"))
    yield one
    one.close()


@pytest.fixture
def page(tmp_path):
    """A run with previews at steps 0 and 20 of 60, and the server of its page."""
    root = preview_run(tmp_path / "dog")
    server = PageServer(RunFolder(root))
    server.start()
    yield server
    server.close()


def sources(browser):
    return browser.value(f"{SHOWN}.map((one) => decodeURIComponent(new URL(one.src).pathname))")


def test_the_page_shows_the_run_without_a_complaint_of_the_console(browser, page):
    browser.open(page.address)
    browser.wait(LOADED)
    browser.wait(f"{TEXT}.includes('instance 0')")  # the losses come last
    text = browser.value(TEXT)
    for part in ("dog", "running", "20 of 60", "a photo of sks dog", "Loss", "instance 0", "subject fidelity"):
        assert part in text
    assert "mind the gap" in text, "the warning"
    assert browser.value("document.querySelector('#progress').value / document.querySelector('#progress').max") == 1 / 3
    assert browser.value("document.title") == "33% dog"
    columns = [name.split("/")[-2] for name in sources(browser)]
    assert columns == ["base", "raw", "ema"], "side by side"
    assert browser.complaints == []


def test_a_preview_appears_step_by_step_while_the_page_is_open(browser, page):
    root = page.folder.root
    browser.open(page.address)
    browser.wait(LOADED)
    before = sources(browser)
    for number in (5, 10):
        path = f"previews/step-000040/raw/steps/a-{number:03d}.png"
        picture(root / path, number)
        emit(root, "preview", step=40, prompt="a photo of sks dog", seed=1, sampler_step=number, of=10, path=path)
        browser.wait(f"{SHOWN}.length == 1 && {SHOWN}[0].src.includes('a-{number:03d}.png') && {SHOWN}[0].naturalWidth")
        assert f"in the making ({number} of 10)" in browser.value(TEXT)
    picture(root / "previews/step-000040/raw/a.png", 3)
    done = {"path": "previews/step-000040/raw/a.png", "model": "adapter", "prompt": "a photo of sks dog", "seed": 1}
    emit(root, "images", step=40, images=[done])
    browser.wait(f"{SHOWN}.some((one) => one.src.includes('step-000040/raw/a.png')) && {LOADED}")
    assert "in the making" not in browser.value(TEXT)
    assert sources(browser) != before
    assert browser.complaints == []


def slide(browser, name, value):
    browser.value(
        f"(() => {{ const one = document.getElementById('{name}'); one.value = {value};"
        " one.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def test_the_slider_goes_back_to_an_older_preview_and_stays_there(browser, page):
    browser.open(page.address)
    browser.wait(LOADED)
    slide(browser, "history", 0)
    browser.wait(f"{SHOWN}.some((one) => one.src.includes('step-000000/raw')) && {LOADED}")
    assert "step 0 (1 of 2)" in browser.value("document.getElementById('history-text').textContent")
    root = page.folder.root
    picture(root / "previews/step-000040/raw/a.png", 3)
    done = {"path": "previews/step-000040/raw/a.png", "model": "adapter", "prompt": "p", "seed": 1}
    emit(root, "images", step=40, images=[done])
    browser.wait("document.getElementById('history').max == 2")
    assert any("step-000000/raw" in name for name in sources(browser)), "news must not take the picture away"
    browser.value("document.getElementById('newest').click()")
    browser.wait(f"{SHOWN}.some((one) => one.src.includes('step-000040')) && {LOADED}")


def test_the_sampler_slider_shows_what_a_picture_was_on_the_way(browser, page):
    browser.open(page.address)
    browser.wait(LOADED)
    slide(browser, "sampler", 0)
    browser.wait(f"{SHOWN}.some((one) => one.src.includes('raw/steps/a-005.png')) && {LOADED}")
    assert browser.value("document.getElementById('sampler-text').textContent") == "5 of 10"


@pytest.mark.parametrize("width", [320, 390, 700])
def test_a_phone_shows_one_column_and_never_scrolls_sideways(browser, page, width):
    browser.open(page.address, width, 700, dark=width == 390)
    browser.wait(LOADED)
    browser.wait("document.querySelectorAll('.chart path').length > 0")
    assert browser.value("document.documentElement.scrollWidth") <= width
    lefts = browser.value("[...document.querySelectorAll('main > section:not([hidden])')].map((one) => one.offsetLeft)")
    assert len(set(lefts)) == 1 and len(lefts) >= 5
    dark = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 19, 26)"
    assert dark == (width == 390)


CONTRAST = """(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((n) => n / 255)
      .map((n) => (n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
  };
  const names = 'h1, h2, h3, p, span, dt, dd, li, strong, summary, label, output, figcaption, pre';
  const all = [...document.querySelectorAll(names)];
  return Math.min(...all.filter((one) => one.innerText).map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_and_everything_has_a_name(browser, page, dark):
    browser.open(page.address, dark=dark)
    browser.wait(LOADED)
    browser.wait("document.querySelectorAll('.chart path').length > 0")
    assert browser.value(CONTRAST) >= 4.5, "WCAG 2.2, 1.4.3"
    unnamed = browser.value(
        "[...document.querySelectorAll('input, progress')].filter((it) => !it.labels?.length && !it.ariaLabel).length"
        " + [...document.querySelectorAll('img')].filter((one) => !one.alt).length"
        " + [...document.querySelectorAll('svg[role=img]')].filter((one) => !one.ariaLabel).length"
    )
    assert unnamed == 0


def test_words_of_the_run_are_text_and_never_markup(browser, page):
    root = page.folder.root
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    emit(root, "warning", step=20, message=evil)
    picture(root / "previews/step-000020/raw/b.png", 3)
    image = {"path": "previews/step-000020/raw/b.png", "model": "adapter", "prompt": evil, "seed": 1}
    emit(root, "images", step=20, images=[image])
    (root / "config.yaml").write_text(f"data: '{evil}'\n")
    browser.open(page.address)
    browser.wait(f"{TEXT}.includes('onerror') && {LOADED}")
    assert browser.value("document.title") == "33% dog"
    assert browser.value("document.querySelectorAll('main script, main img:not([alt*=seed])').length") == 0
    assert browser.complaints == []


def test_a_cut_line_is_taken_up_where_it_was_and_nothing_is_told_twice(browser, page, monkeypatch):
    browser.open(page.address)
    browser.wait(LOADED)
    read, cuts = feed.read, []

    def cut(*args):
        if not cuts:
            cuts.append(1)
            raise ConnectionResetError
        return read(*args)

    monkeypatch.setattr(feed, "read", cut)
    browser.wait(f"{TEXT}.includes('trying again')")
    emit(page.folder.root, "warning", step=21, message="meanwhile")
    browser.wait(f"{TEXT}.includes('meanwhile')")
    assert browser.value(TEXT).count("mind the gap") == 1


def test_a_page_whose_server_has_ended_says_how_to_look_again(browser, page):
    browser.open(page.address)
    browser.wait(LOADED)
    port, root = page.server_port, page.folder.root
    page.close()
    browser.wait(f"{TEXT}.includes('dreamlit watch dog')")
    emit(root, "run", step=60, stage="finished", of=60)
    again = PageServer(RunFolder(root), port=port)
    again.start()
    try:
        browser.open(again.address)
        browser.wait(f"{TEXT}.includes('finished') && {TEXT}.includes('60 of 60')")
    finally:
        again.close()


def test_a_token_opens_the_page_and_leaves_the_address_bar(browser, tmp_path):
    server = PageServer(RunFolder(preview_run(tmp_path / "dog")), token="a-token-of-this-test")
    server.start()
    try:
        browser.open(f"{server.address}?token=a-token-of-this-test")
        browser.wait(LOADED)
        assert browser.value("location.href") == server.address
        assert browser.complaints == []
    finally:
        server.close()
