"""The page at /: its files hold together, and in a browser it does what it says."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import itertools
import json
import re
import shutil
import subprocess
import threading
import time
from html.parser import HTMLParser

import pytest

from terrazzo.serve import replies
from terrazzo.serve.page import page_files

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
FILES = page_files()
HTML, STYLE, SCRIPT = (FILES[path].body.decode() for path in ("/", "/page/page.css", "/page/page.js"))
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


class Elements(HTMLParser):
    """The start tags of a page, each with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(HTML).found
IDS = [attributes["id"] for _, attributes in ELEMENTS if "id" in attributes]


# The files


def test_nothing_comes_from_outside():
    for path, file in FILES.items():
        text = re.sub(r'xmlns="http://www\.w3\.org/\S+"|"http://www\.w3\.org/2000/svg"', "", file.body.decode())
        assert not re.search(r"(https?:)?//[\w.-]+\.\w+|@import|\burl\((?!#)", text), path


def test_the_policy_lets_no_inline_code_or_style_run():
    for file in FILES.values():
        policy = dict(part.split(" ", 1) for part in file.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
    assert not [name for _, attributes in ELEMENTS for name in attributes if name == "style" or name.startswith("on")]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style", HTML)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", SCRIPT)


def test_addresses_are_relative_so_that_a_proxy_may_put_the_page_below_a_path():
    links = [value for _, attributes in ELEMENTS for name, value in attributes.items() if name in ("href", "src")]
    assert not [link for link in links if link.startswith("/")]
    assert {f"/{link}" for link in links if link.startswith("page/")} == set(FILES) - {"/"}


def test_whatever_the_script_looks_for_is_in_the_page():
    assert len(IDS) == len(set(IDS))
    asked = set(re.findall(r'byId\("([\w-]+)"\)', SCRIPT))
    names = re.findall(r"^  (\w+): \{\n    title:", SCRIPT, re.M)
    assert len(names) == 7
    asked |= {f"panel-{name}" for name in names} | set(re.findall(r'"(live-[\w-]+)": ', SCRIPT))
    assert asked <= set(IDS)
    classes = {name for _, attributes in ELEMENTS for name in (attributes.get("class") or "").split()}
    assert set(re.findall(r'find\("\.(\w+)"\)', SCRIPT)) <= classes | set(re.findall(r'class: "\w+ (\w+)"', SCRIPT))


def test_every_field_has_a_label():
    labelled = {attributes["for"] for tag, attributes in ELEMENTS if tag == "label"}
    fields = [attributes for tag, attributes in ELEMENTS if tag in ("input", "select", "textarea")]
    assert {attributes["id"] for attributes in fields} == labelled


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme):
    colours = scheme_colours(scheme)
    for text, behind in itertools.product(("ink", "soft", "train", "good", "held", "bad"), ("page", "well")):
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    assert contrast(colours["on-train"], colours["train"]) >= 4.5
    assert contrast(colours["ink"], colours["bad-well"]) >= 4.5
    assert contrast(colours["ink"], colours["field"]) >= 4.5
    assert contrast(colours["edge"], colours["page"]) >= 3  # the border of a field


def scheme_colours(scheme):
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    given = light if scheme == "light" else light + dark
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", given))


def contrast(a, b):
    """Reference: WCAG 2.2, relative luminance and contrast ratio."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.skipif(NODE is None, reason="no node on this machine")
def test_the_script_parses(tmp_path):
    (tmp_path / "page.mjs").write_text(SCRIPT)
    subprocess.run([NODE, "--check", tmp_path / "page.mjs"], check=True, timeout=20)


# A server that says what it is told to, and a browser


class Scripted(http.server.ThreadingHTTPServer):
    """The page, and an API whose replies a test sets; every body that came in is kept."""

    daemon_threads = True

    def __init__(self, models):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.info = info(models)
        self.replies, self.bodies, self.keys, self.slow, self.key = {}, [], [], threading.Event(), None
        self.slow.set()
        self.metrics, self.polls = "", 0
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that cancels is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        if self.path in FILES:
            file = FILES[self.path]
            self.answer(200, file.body, {"Content-Type": file.media_type, **file.headers})
            return
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self.answer(401, refusal("no API key: send the header Authorization: Bearer KEY"))
            return
        self.answer(200, self.server.info if self.path == "/info" else self.server.metrics.encode())
        self.server.polls += self.path == "/metrics"

    def do_POST(self):  # noqa: N802
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(raw)
        self.server.keys.append(self.headers["Authorization"])
        self.server.slow.wait(10)
        status, body, headers = self.server.replies[self.path]
        self.answer(status, body, headers)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Tests print nothing."""


def refusal(message):
    said = {"message": message, "type": "invalid_request_error", "param": None, "code": "x"}
    return replies.Error(error=said).model_dump_json().encode()


def info(models):
    common = {"width": 4, "max_len": 128, "parameters": 22_000_000, "runtime": "openvino", "precision": "int8"}
    common |= {"batch_tokens": 4096, "queue_tokens": 10_000, "queued_tokens": 0, "fingerprint": "f" * 64, "loaded": 0.0}
    common |= {"pair": False, "labels": [], "problems": [], "mask": None}
    limits = {"max_body_bytes": 1 << 20, "max_texts": 100, "max_guesses": 1000, "max_header_bytes": 32_768}
    server = {"name": "terrazzo", "version": "0", "versions": {}, "started": 0.0, "ready": True, "limits": limits}
    made = replies.Info(**server, models=[{**common, "name": name, **rest} for name, rest in models.items()])
    return made.model_dump_json().encode()


MODELS = {
    "minilm": {"abilities": ["embed", "rerank"], "kind": None},
    "intents": {"abilities": ["embed", "classify"], "kind": "label", "labels": ["balance", "transfer"]},
    "names": {"abilities": ["embed", "tag"], "kind": "tag", "labels": ["LOC", "ORG", "PER"]},
}
USAGE = {"prompt_tokens": 5, "total_tokens": 5, "truncated_inputs": 0, "truncated_tokens": 0}


def ok(reply):
    return 200, reply.model_dump_json().encode(), {"Content-Type": "application/json"}


def listed(kind, *results):
    data = [{"index": i, **result} for i, result in enumerate(results)]
    return ok(kind(object="list", data=data, model="m", usage=USAGE))


class Tab:
    """One tab of a headless Chromium, through its debugging protocol."""

    def __init__(self, socket):
        self.socket = socket
        self.numbers, self.events = itertools.count(1), []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=20))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script):
        """The value of an expression in the page; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script):
        return wait_until(lambda: self.run(f"!!({script})"), script)

    def open(self, address, *, width=1200, height=900, scheme="light"):
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def write(self, selector, text):
        self.run(f"document.querySelector({selector!r}).select()")
        self.send("Input.insertText", text=text)

    def press(self, key, modifiers=0):
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37}
        common = {"key": key, "code": key, "modifiers": modifiers, "windowsVirtualKeyCode": codes[key]}
        said = {"type": "keyDown", "text": "\r"} if key == "Enter" and not modifiers else {"type": "rawKeyDown"}
        self.send("Input.dispatchKeyEvent", **said, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector):
        box = f"document.querySelector({selector!r})"
        self.run(f"{box}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path):
        whole = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": whole["width"], "height": whole["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self):
        """Exceptions, and what the browser logged: broken rules of the policy among them."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def addresses(self):
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return {params["request"]["url"] for params in sent}


@contextlib.contextmanager
def chromium(folder):
    """A browser with one tab, ended whatever happens."""
    from websockets.sync.client import connect

    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(
                tab_address(folder / "DevToolsActivePort"), proxy=None, max_size=None, ping_interval=None
            ) as socket:
                yield Tab(socket)
        finally:
            process.terminate()


def tab_address(port_file):
    wait_until(lambda: port_file.exists() and "\n" in port_file.read_text(), "a debugging port")
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", int(port_file.read_text().split("\n")[0]))
    ) as client:
        client.request("PUT", "/json/new?about:blank")
        return json.load(client.getresponse())["webSocketDebuggerUrl"]


def wait_until(holds, what, seconds=15):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := holds():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(browser):
    browser.send("Page.navigate", url="about:blank")
    browser.run("document.readyState")
    browser.events.clear()
    return browser


@pytest.fixture
def server():
    scripted = Scripted(MODELS)
    yield scripted
    scripted.slow.set()
    scripted.shutdown()
    scripted.server_close()


def shown(panel, selector):
    return f"document.querySelector('#panel-{panel} {selector}')"


@in_browser
def test_a_text_is_classified_and_the_curl_line_makes_the_same_request(tab, server):
    scores = [{"label": "transfer", "score": 0.75}, {"label": "balance", "score": 0.25}]
    reply = listed(replies.ClassifyReply, {"label": "transfer", "score": 0.75, "scores": scores})
    server.replies["/v1/classify"] = reply
    tab.open(f"{server.address}/#classify")
    tab.until("document.querySelector('#tab-classify')?.ariaSelected === 'true'")
    tab.write("#classify-text", 'it\'s "$HOME" \\ ähm\n2nd')
    tab.press("Enter", modifiers=2)
    tab.until(shown("classify", ".headline"))
    assert tab.run(shown("classify", ".result") + ".innerText").split("\n")[0].startswith("transfer")
    assert json.loads(server.bodies[-1]) == {"model": "intents", "input": 'it\'s "$HOME" \\ ähm\n2nd'}
    command = tab.run(shown("classify", ".curl code") + ".textContent").replace("curl ", "curl -sS ", 1)
    said = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=20).stdout
    assert said == reply[1] and server.bodies[-1] == server.bodies[-2]
    assert all(address.startswith(server.address) for address in tab.addresses()) and not tab.complaints()


@in_browser
def test_spans_lie_where_the_server_counts_them_whatever_the_script(tab, server):
    text = "👩‍👩‍👧 Ada ging nach القاهرة <img src=x onerror=alert(1)>"
    spans = [
        {"start": text.index(word), "end": text.index(word) + len(word), "label": label, "score": 0.9, "text": word}
        for word, label in (("Ada", "PER"), ("القاهرة", "LOC"), ("<img src=x onerror=alert(1)>", "<b>ORG"))
    ]
    server.replies["/v1/tag"] = listed(replies.TagReply, {"spans": spans})
    tab.open(f"{server.address}/#tag")
    tab.until("document.querySelector('#tag-text')?.value")
    tab.write("#tag-text", text)
    tab.click("#panel-tag .run")
    tab.until(shown("tag", "mark"))
    marks = tab.run(
        "[...document.querySelectorAll('#panel-tag mark')].map((m) => [m.firstChild.data, m.lastChild.textContent])"
    )
    assert marks == [[span["text"], span["label"]] for span in spans]
    assert not tab.run("document.querySelector('.result img, .result b b') || document.images.length")
    assert not tab.complaints()


@in_browser
def test_an_api_key_is_asked_for_kept_in_the_tab_and_sent_in_a_header(tab, server):
    server.key = "a secret"
    tab.open(server.address)
    tab.until("document.activeElement.id === 'key'")
    assert "Authorization: Bearer KEY" in tab.run("document.querySelector('#notice').textContent")
    tab.send("Input.insertText", text="a secret")
    tab.press("Enter")
    tab.until("document.querySelector('[role=tab]')")
    assert tab.run("document.querySelector('#notice').hidden")
    server.replies["/v1/rerank"] = 429, refusal("the queue is full; come back in 1 s"), {"Retry-After": "1"}
    tab.click("#tab-rerank")
    tab.click("#panel-rerank .run")
    tab.until(shown("rerank", ".message button"))
    assert server.keys[-1] == "Bearer a secret"
    assert "the queue is full" in tab.run(shown("rerank", ".message") + ".textContent")
    assert "a secret" not in tab.run("location.href + document.querySelector('#panel-rerank code').textContent")
    tab.until(f"!{shown('rerank', '.message button')}.disabled")
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    order = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": -0.1}]
    server.replies["/v1/rerank"] = ok(replies.RerankReply(id="1", model="m", results=order, meta=meta, usage=USAGE))
    tab.click("#panel-rerank .message button")
    tab.until(shown("rerank", ".bars"))
    documents = json.loads(server.bodies[-1])["documents"]
    assert documents[1] in tab.run(shown("rerank", ".bars li") + ".textContent")
    assert tab.run(shown("rerank", ".message") + ".hidden")


@in_browser
def test_a_slow_answer_shows_that_it_is_awaited_and_can_be_cancelled(tab, server):
    server.slow.clear()
    server.replies["/v1/embeddings"] = ok(replies.EmbeddingsReply(object="list", data=[], model="m", usage=USAGE))
    tab.open(server.address)
    tab.until("document.querySelector('[role=tab]')")
    tab.click("#panel-similarity .run")
    tab.until(f"!{shown('similarity', '.busy')}.hidden && {shown('similarity', '.elapsed')}.textContent")
    tab.click("#panel-similarity .cancel")
    tab.until(f"{shown('similarity', '.message')}.textContent === 'Cancelled.'")
    assert tab.run(f"{shown('similarity', '.busy')}.hidden && {shown('similarity', '.cancel')}.hidden")


@in_browser
def test_tabs_answer_to_arrow_keys(tab, server):
    tab.open(server.address)
    tab.until("document.querySelector('[role=tab]')")
    tab.run("document.querySelector('[role=tab]').focus()")
    tab.press("ArrowRight")
    assert tab.run("document.activeElement.id") == "tab-classify"
    tab.press("ArrowLeft")
    tab.press("ArrowLeft")
    assert tab.run("[document.activeElement.id, location.hash]") == ["tab-rerank", "#rerank"]
    assert tab.run("[...document.querySelectorAll('[role=tabpanel]:not([hidden])')].map((p) => p.id)") == [
        "panel-rerank"
    ]


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_only(tab, server, scheme):
    long = "x" * 200
    scores = [{"label": long, "score": 1.0}]
    server.replies["/v1/classify"] = listed(replies.ClassifyReply, {"label": long, "score": 1.0, "scores": scores})
    tab.open(f"{server.address}/#classify", width=360, height=740, scheme=scheme)
    tab.until("document.querySelector('[role=tab]')")
    tab.write("#classify-text", long)
    tab.click("#panel-classify .run")
    tab.until(shown("classify", ".headline"))
    tab.run("document.querySelectorAll('details').forEach((folded) => (folded.open = true))")
    tab.run("document.querySelectorAll('#figures, #live-chart, .message, .busy').forEach((e) => (e.hidden = false))")
    for name in ("classify", "similarity", "tag", "rerank"):
        tab.run(f"document.querySelector('#tab-{name}').click()")
        assert tab.run("document.documentElement.scrollWidth") == 360, name
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(252, 252, 251)") == (scheme == "light")


@in_browser
def test_live_figures_are_what_came_between_two_polls(tab, server):
    def metrics(requests, fast):
        buckets = {"0.01": fast, "0.1": requests, "+Inf": requests}
        route = 'route="/v1/tag"'
        return "\n".join(
            [f'terrazzo_request_seconds_bucket{{{route},le="{bound}"}} {count}' for bound, count in buckets.items()]
            + [
                f'terrazzo_requests_total{{{route},status="200"}} {requests}.0',
                'terrazzo_queue_documents{model="a"} 7.0',
            ]
            + ['terrazzo_requests_total{route="/metrics",status="200"} 99999.0', "terrazzo_batch_documents_count 2.0"]
        )

    server.metrics = metrics(1000, 1000)
    tab.open(server.address, height=3000)
    wait_until(lambda: server.polls, "the first poll")
    server.metrics = metrics(1100, 1050)
    tab.until("document.querySelector('#live-p50').textContent !== '–'")
    read = "[...document.querySelectorAll('#figures b')].map((b) => [b.id, b.textContent])"
    figures = dict(tab.run(read))
    assert 30 < float(figures["live-requests"]) < 60  # 100 in two seconds
    assert figures["live-p50"] == "10 ms" and figures["live-p95"] == "91 ms" and figures["live-queue"] == "7"
