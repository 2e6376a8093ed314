"""The page's files: what they may load, where they are from, and how they are sent."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.server import Server

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pyllama2" / "server" / "page"
OWN = sorted(path for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))


def test_files_of_others_are_the_ones_that_were_fetched() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "vendor_page.py"), "--check"], check=True)
    text = (ROOT / "THIRD_PARTY_LICENSES.md").read_text()
    for name in ("markdown-it 15.0.3", "DOMPurify 3.5.0", "highlight.js 11.12.0", "Inter 5.3.0"):
        assert name in text


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_is_from_elsewhere_or_inline(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"https?://[^\"'\s`)]*", text)) <= {"http://www.w3.org/2000/svg"}, path
    if path.suffix == ".html":
        assert not re.search(r"\s(style|on\w+)=|<style|<script(?![^>]* src=)", text)
    if path.suffix == ".js":
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function|document\.write", text)


def test_every_file_that_is_named_is_there(server: Server) -> None:
    page = server.http("GET", "/").body.decode()
    names = re.findall(r'(?:href|src)="(static/[^"#]+)"', page)
    assert len(names) >= 5
    for name in names:
        assert server.http("GET", f"/{name}").status == 200
    for path in OWN:
        for name in re.findall(r"from \"\./([^\"]+)\"|url\(\"([^\"]+)\"\)", path.read_text()):
            assert (FOLDER / "".join(name)).is_file(), (path, name)


def test_headers(server: Server) -> None:
    reply = server.http("GET", "/")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/html")
    policy = dict(rule.strip().split(" ", 1) for rule in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    again = server.http("GET", "/", headers={"If-None-Match": reply.headers["etag"]})
    assert again.status == 304 and not again.body
    script = server.http("GET", "/static/main.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["", "no.js", "../app.py", "%2e%2e/app.py", "vendor", "/etc/passwd", "..%2fapp.py"])
def test_no_other_file_can_be_had(server: Server, name: str) -> None:
    reply = server.http("GET", f"/static/{name}")
    assert reply.status == 404 and reply.error["code"] == "not_found"
