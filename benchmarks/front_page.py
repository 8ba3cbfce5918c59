"""How long the site's front page takes to be there, from this machine, over a slow line.

    python benchmarks/front_page.py

Serves the page from here and opens it in Chromium, which is held to the line that Lighthouse takes
for a slow phone's: 1.6 Mbit/s down, 0.75 Mbit/s up, 150 ms there and back. No compression, no
cache. Medians go to results/front-page.json: milliseconds from the request until text is painted,
and until the bar to drag is drawn.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
import play
from browser_lab import CHROMIUM_FLAGS, chromium

OUT = Path(__file__).parent / "results" / "front-page.json"
TIMES = 7
LINE = {"offline": False, "latency": 150, "downloadThroughput": 1.6e6 / 8,
        "uploadThroughput": 0.75e6 / 8}  # milliseconds, bytes a second  # fmt: skip
# Notes when the first bar is in the page, and the frame with it is drawn.
WATCH = """new MutationObserver((_, observer) => {
  if (!document.querySelector(".vblora-sub-handle")) return;
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.drawnAt = performance.now(); }));
}).observe(document, { childList: true, subtree: true });"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: Any) -> None:
        """Nobody reads it."""


def once(browser: Browser, address: str) -> tuple[float, float, int]:
    """Milliseconds until the first text and until the bar, and the bytes that came."""
    page = browser.new_page()
    line = page.context.new_cdp_session(page)
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", LINE)
    page.add_init_script(WATCH)
    page.goto(address)
    drawn = page.wait_for_function("window.drawnAt").json_value()
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    came = page.evaluate(
        "['navigation', 'resource'].flatMap((kind) => performance.getEntriesByType(kind))"
        ".reduce((sum, each) => sum + each.transferSize, 0)"
    )
    page.close()
    return painted, drawn, came


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        play.write_front(Path(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        address = f"http://127.0.0.1:{server.server_port}/{play.FRONT.file}"
        loads = [once(browser, address) for _ in range(TIMES)]
        browser.close()
        server.shutdown()
    painted, drawn, came = (statistics.median(of) for of in zip(*loads, strict=True))
    slowest = max(drawn for _, drawn, _ in loads)
    result = {"line": LINE, "times": TIMES, "bytes": came, "text_ms": round(painted),
              "bar_ms": round(drawn), "slowest_bar_ms": round(slowest)}  # fmt: skip
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
