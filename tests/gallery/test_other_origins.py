"""A page of another origin, in the browser that has the token of the gallery: it reads nothing and changes nothing."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.gallery import Server

import hnetkit
from hnetkit.gallery.pages import path_part

# what a page can do without the other side's consent: each way ends with what it got, as text
_PAGE = """<!doctype html><title>another</title><body><script>
const base = %(base)s, place = %(place)s, got = {};
const body = '{"add": "stolen"}';
const ends = (make) => new Promise((done) => { make(done); setTimeout(done, 3000, "nothing"); });
const loads = (name, attribute, path) => ends((done) => {
  const part = document.createElement(name);
  [part.onload, part.onerror] = [() => done("loaded"), () => done("refused")];
  part[attribute] = base + path;
  if (name === "link") part.rel = "stylesheet";
  document.body.append(part);
});
const posts = (type) => ends((done) => {
  const [frame, form, field] = ["iframe", "form", "input"].map((name) => document.createElement(name));
  [frame.name, form.target, form.method, form.enctype, form.action] = [type, type, "post", type, base + place];
  [field.name, field.value] = ['{"add": "stolen", "x": "', '"}'];
  form.append(field);
  document.body.append(frame, form);
  frame.onload = () => done(frame.contentDocument ? "read" : "refused");
  form.submit();
});
const fetches = (settings) => ends((done) => fetch(base + (settings.path ?? place), settings)
  .then((answer) => answer.text()).then((text) => done(text ? "read" : "nothing"), () => done("refused")));
const frames = () => ends((done) => {
  const frame = document.createElement("iframe");
  frame.onload = () => done(frame.contentDocument || frame.contentWindow.length ? "read" : "refused");
  frame.src = base + "/";
  document.body.append(frame);
});
(async () => {
  for (const type of ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"]) {
    got["form " + type] = await posts(type);
    for (const mode of ["cors", "no-cors"])
      got[`${mode} ${type}`] = await fetches({ method: "POST", mode, body, headers: { "Content-Type": type } });
  }
  const headers = { "Content-Type": "application/json", "X-Gallery-Token": "?" };
  got.json = await fetches({ method: "POST", body, headers });
  for (const mode of ["cors", "no-cors"]) got["GET " + mode] = await fetches({ path: "/", mode });
  navigator.sendBeacon(base + place, new Blob([body], { type: "text/plain" }));
  got.image = await loads("img", "src", place.replace("network", "thumbnail").replace("/tags", ""));
  got.script = await loads("script", "src", "/static/gallery.js");
  got.style = await loads("link", "href", "/static/gallery.css");
  got.frame = await frames();
  window.got = got;
})();
</script>"""


@pytest.fixture
def place(library: hnetkit.Library) -> str:
    return f"/network/{path_part(library.record('ink')['content_hash'])}/tags"


@pytest.fixture
def another(server: Server, place: str) -> Iterator[str]:
    """The address of a page on another port of the same machine, and so of the same site."""
    text = (_PAGE % {"base": json.dumps(server.base), "place": json.dumps(place)}).encode()

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{pages.server_port}/"
        pages.shutdown()


def test_it_reads_nothing_and_changes_nothing(
    chromium: Any, server: Server, library: hnetkit.Library, another: str
) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.address)
    page.goto(another)
    page.wait_for_function("window.got", timeout=60_000)
    got = page.evaluate("got")
    context.close()
    assert len(got) == 16
    assert {way: end for way, end in got.items() if end in ("read", "loaded")} == {}
    assert set(library.record("ink")["tags"]) == {"night", "lineart"}
