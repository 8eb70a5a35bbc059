"""A headless Chromium, driven through its DevTools protocol."""

import json
import shutil
import subprocess
import time
from itertools import count
from pathlib import Path

import websocket

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WAIT = 60.0  # seconds; of a machine that is busy

# What a reader would miss: formulas that were not set, pictures that did not come, a page that
# has to be pushed sideways.
LOOK = """
(async () => {
  const formulas = document.querySelectorAll(".math").length;
  if (formulas && window.MathJax) await MathJax.startup.promise;
  for (const picture of document.images) picture.loading = "eager";
  await Promise.allSettled(Array.from(document.images, picture => picture.decode()));
  const seen = element => element.getBoundingClientRect().width > 0;
  const set = Array.from(document.querySelectorAll(".math mjx-container")).filter(seen).length;
  const faults = [];
  if (set < formulas) faults.push(`${formulas - set} of ${formulas} formulas are not set`);
  for (const error of document.querySelectorAll("mjx-merror"))
    faults.push(`a formula has an error: ${error.textContent}`);
  for (const picture of document.images)
    if (!picture.naturalWidth || !seen(picture)) faults.push(`no picture ${picture.src}`);
  const wider = document.documentElement.scrollWidth - window.innerWidth;
  if (wider > 0) faults.push(`${wider} pixels wider than the window`);
  return faults;
})()
"""


class Browser:
    """One page of a browser that keeps what goes wrong on it; a context manager.

    Args:
        folder: An empty folder for its profile.
    """

    def __init__(self, folder: Path) -> None:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        options += ["--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen([CHROMIUM, *options], stderr=subprocess.DEVNULL)
        self._numbers = count(1)
        self._faults: list[str] = []
        port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + WAIT
        while not (port_file.exists() and "\n" in port_file.read_text()):
            assert self._process.poll() is None, "Chromium ended at once"
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        port, path = port_file.read_text().splitlines()
        self._socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=WAIT)
        self._session = None
        (page,) = (
            target["targetId"]
            for target in self._call("Target.getTargets")["targetInfos"]
            if target["type"] == "page"
        )
        attached = self._call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(WAIT)

    def faults(self, path: Path, width: int, height: int = 900) -> list[str]:
        """Open a file in a window of so many pixels; what is wrong there, in words."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._faults = []
        self._loaded = False
        self._call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._receive()
        looked = self._call(
            "Runtime.evaluate", expression=LOOK, awaitPromise=True, returnByValue=True
        )
        return [*self._faults, *looked["result"]["value"]]

    def _call(self, method: str, **parameters: object) -> dict:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _receive(self) -> dict:
        message = json.loads(self._socket.recv())
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self._faults.append(f"an exception: {parameters['exceptionDetails']['text']}")
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert"):
                self._faults.append(f"the console says {parameters['args'][0].get('value')}")
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self._faults.append(f"the log says {parameters['entry']['text']}")
            case "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    self._faults.append(f"asks the network for {url}")
        return message
