"""browser.py DIRECTORY < PLAN: opens a page in headless Chromium, which DIRECTORY has (packaging/provision).

PLAN is {"url": ..., "views": [...]}; each view is opened after the one before, in the same browser:
  {"width": 360, "height": 740, "scheme": "dark",     how large it is, and whether the user prefers dark
   "before": "SCRIPT",                                runs before those of the page, also in later views
   "stays": true,                                     does not open the page again
   "until": "EXPRESSION",                             waits until this is true, at most for "limit" seconds
   "keys": ["Tab", "Enter", "text:bob"],              presses keys
   "ends": PID,                                       ends a process
   "then": "EXPRESSION",                              waits again
   "ask": {"name": "EXPRESSION"},                     what is answered
   "picture": "FILE.png"}                             a picture of what is visible

Prints {"views": [{"name": value}], "console": [...], "requests": [...]}: each message of the console, each exception and
each refused request; and each URL that was requested.
"""

import ctypes
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from urllib.parse import urlsplit

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars", "--no-proxy-server", "--force-color-profile=srgb",
]
KEYS = {"Tab": 9, "Enter": 13, "Space": 32, "Escape": 27}

CLONE_NEWNET = 0x40000000


def copy(source, target):
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            end.close()


def become_remote(url):
    """Puts the caller's thread, and what it starts, into a namespace with nothing but a relay to the server of `url`.

    Chromium ends its requests whenever an address or a link of its namespace changes; those of a gateway do.
    """
    ends = (urlsplit(url).hostname, urlsplit(url).port)
    libc, ready, listeners = ctypes.CDLL(None, use_errno=True), threading.Event(), []

    def relay():
        ready.wait()
        while True:
            near = listeners[0].accept()[0]
            try:
                far = socket.create_connection(ends)
            except OSError:
                near.close()
                continue
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    # A thread keeps the namespace in which it was started.
    threading.Thread(target=relay, daemon=True).start()
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    listeners.append(socket.create_server(ends))
    ready.set()


class Browser:
    """Chromium, driven by the DevTools protocol over a pipe: JSON messages that end with a NUL."""

    def __init__(self, directory, profile):
        to_browser, self.commands = os.pipe()
        self.messages, from_browser = os.pipe()
        library_directories = [str(path) for root in ("usr/lib", "lib") for path in directory.glob(f"{root}/*-linux-gnu")]
        library_directories += [f"{path}/pulseaudio" for path in library_directories]
        fonts = pathlib.Path(profile, "fonts.conf")
        fonts.write_text(
            "<?xml version='1.0'?><!DOCTYPE fontconfig SYSTEM 'fonts.dtd'><fontconfig>"
            f"<dir>{directory}/usr/share/fonts</dir><cachedir>{profile}/fonts</cachedir></fontconfig>"
        )
        environment = {
            **os.environ, "LD_LIBRARY_PATH": ":".join(library_directories), "FONTCONFIG_FILE": str(fonts), "TZ": "UTC",
            "HOME": profile,
        }
        program = directory / "usr/lib/chromium/chromium-headless-shell"
        log = open(pathlib.Path(profile, "log"), "wb")

        def place_pipes():
            # Their numbers are fixed, and each may be in the place of the other.
            ends = [os.dup(end) for end in (to_browser, from_browser)]
            for place, end in zip((3, 4), [os.dup2(end, 100 + at) for at, end in enumerate(ends)]):
                os.dup2(end, place)

        self.process = subprocess.Popen(
            [program, *ARGUMENTS, f"--user-data-dir={profile}/profile", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, close_fds=False, preexec_fn=place_pipes,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.log, self.number, self.rest, self.events = log.name, 0, b"", []

    def read(self, limit):
        while b"\0" not in self.rest:
            if not select.select([self.messages], [], [], limit)[0]:
                raise TimeoutError(f"the browser does not answer for {limit} s")
            part = os.read(self.messages, 1 << 20)
            if not part:
                raise EOFError("the browser ended: " + pathlib.Path(self.log).read_text(errors="replace")[-2000:])
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read(60)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def end(self):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except Exception:
            self.process.kill()
            self.process.wait()


class Page:
    def __init__(self, browser):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression, limit):
        end = time.monotonic() + limit
        # The scripts of the page may not have run.
        attempt = f"(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()"
        while not self.evaluate(attempt):
            if time.monotonic() > end:
                text = self.evaluate("document.body?.innerText")
                said = "\n".join(console(self.browser.events))
                raise TimeoutError(f"never true: {expression}; the console:\n{said}\nthe page:\n{text}")
            time.sleep(0.05)

    def press(self, key):
        if key.startswith("text:"):
            self.call("Input.insertText", text=key[5:])
            return
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0]))}
        text = {"Enter": {"text": "\r"}, "Space": {"text": " ", "key": " "}}.get(key, {} if key in KEYS else {"text": key})
        self.call("Input.dispatchKeyEvent", type="keyDown", **{**code, **text})
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def show(self, url, view):
        width, height = view.get("width", 1280), view.get("height", 900)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": view.get("scheme", "light")}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        if "before" in view:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=view["before"])
        if not view.get("stays"):
            self.call("Page.navigate", url=url)
        limit = view.get("limit", 60)
        self.wait(view.get("until", "document.readyState === 'complete'"), limit)
        for key in view.get("keys", []):
            self.press(key)
        if "ends" in view:
            os.kill(view["ends"], signal.SIGTERM)
        if "then" in view:
            self.wait(view["then"], limit)
        answers = {name: self.evaluate(expression) for name, expression in view.get("ask", {}).items()}
        if "picture" in view:
            data = self.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"]
            pathlib.Path(view["picture"]).write_bytes(b64decode(data))
        return answers


def console(events):
    """What a developer would see in the console."""
    for event in events:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                yield str(parameters["exceptionDetails"])
            case "Runtime.consoleAPICalled":
                yield " ".join(str(part.get("value")) for part in parameters["args"])
            case "Log.entryAdded":
                yield f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}"


def requests(events):
    for event in events:
        if event.get("method") == "Network.requestWillBeSent":
            yield event["params"]["request"]["url"]


def main():
    directory, plan = pathlib.Path(sys.argv[1]), json.load(sys.stdin)
    become_remote(plan["url"])
    with tempfile.TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as profile:
        browser = Browser(directory, str(pathlib.Path(profile).resolve()))
        try:
            page = Page(browser)
            views = [page.show(plan["url"], view) for view in plan["views"]]
            page.call("Page.navigate", url="about:blank")
            events = browser.events
            print(json.dumps({"views": views, "console": [*console(events)], "requests": [*requests(events)]}))
        finally:
            browser.end()


main()
