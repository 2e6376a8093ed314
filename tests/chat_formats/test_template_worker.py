"""The process that renders templates has given up what it does not need, and can still render."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2.filters import FILTERS

from pyllama2.chat_formats import renderer as template_renderer
from pyllama2.chat_formats import template_worker as _template_worker
from pyllama2.chat_formats.renderer import TemplateRenderer
from pyllama2.errors import CheckpointError

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux'")


@pytest.fixture(scope="module")
def process() -> Iterator[Path]:
    """What Linux says of a process that has rendered a template."""
    renderer = TemplateRenderer("{{ name }}")
    assert renderer.render({"name": "a"}) == "a"
    assert renderer._worker is not None
    yield Path(f"/proc/{renderer._worker.pid}")
    renderer.close()


@linux
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("Max core file size", 0),
        ("Max file size", 0),
        ("Max processes", 0),
        ("Max open files", 1),
        ("Max address space", _template_worker.MAX_MEMORY),
    ],
)
def test_limits(process: Path, name: str, limit: int) -> None:
    text = (process / "limits").read_text()
    assert re.search(rf"^{name} +{limit} +{limit} ", text, re.MULTILINE), text


@linux
def test_no_new_privileges_and_no_other_files(process: Path) -> None:
    assert re.search(r"^NoNewPrivs:\t1$", (process / "status").read_text(), re.MULTILINE)
    assert sorted(path.name for path in (process / "fd").iterdir()) == ["0", "1", "2"]


@pytest.mark.subprocess
@linux
def test_what_gets_out_of_the_sandbox_finds_the_doors_shut() -> None:
    script = """
import os, socket, sys, traceback
from pyllama2.chat_formats.template_worker import _confine
_confine()
for harm in (lambda: open(os.devnull), lambda: os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), socket.socket, os.pipe):
    try:
        harm()
    except OSError as error:
        print(error.errno == 24)
    else:
        print(harm, "worked")
if os.getuid() != 0:
    try:
        os.fork()
    except OSError:
        print(True)
"""
    command = [sys.executable, "-c", script, os.devnull + "2"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(output.split()) == {"True"}, output


@pytest.mark.parametrize(
    "elsewhere",
    [
        "sys.platform = 'win32'; sys.modules |= dict.fromkeys(['resource', 'fcntl', 'select'])",
        # Where a limit of memory is refused.
        "sys.platform = 'darwin'; import resource; limit = resource.setrlimit;"
        "resource.setrlimit = lambda kind, to: limit(-1 if kind == resource.RLIMIT_AS else kind, to)",
    ],
    ids=["windows", "macos"],
)
def test_it_renders_on_other_systems(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the modules and limits that they lack; theirs are not at hand."""
    there = template_renderer._START.replace("from pyllama2", f"{elsewhere}\nfrom pyllama2")
    monkeypatch.setattr(template_renderer, "_START", there)
    renderer = TemplateRenderer("{{ messages[0].content | upper }}")
    assert renderer.render({"messages": [{"role": "user", "content": "Hi"}]}) == "HI"
    renderer.close()


# Arguments of the filters that need some.
ARGUMENTS = {
    "attr": "'x'", "batch": "2", "groupby": "'x'", "map": "'upper'", "replace": "'a', 'b'", "round": "1",
    "slice": "2", "select": "'string'", "selectattr": "'x'", "reject": "'string'", "rejectattr": "'x'",
    "format": "1", "default": "1",
}  # fmt: skip


@pytest.mark.subprocess
def test_no_filter_needs_a_file() -> None:
    """Jinja's filters import what they need when they are first used."""
    template = "".join(
        f"{{% if name == {name!r} %}}{{{{ value | {name}({ARGUMENTS.get(name, '')}) }}}}{{% endif %}}"
        for name in FILTERS
    )
    renderer = TemplateRenderer(template)
    values = ["%s", "a <b>&lt;</b> 1 " * 99, [{"x": 1}, {"x": 2}], {"x": 1}, [1, 2], 1.5]
    for name in FILTERS:
        results = []
        for value in values:
            try:
                results.append(renderer.render({"name": name, "value": value}))
            except CheckpointError as error:
                assert "fails: " in str(error) and "Error: [Errno" not in str(error) and "Import" not in str(error)
        assert results, name
    renderer.close()


@pytest.mark.skipif(not Path("/usr/share/zoneinfo/Asia/Tokyo").exists(), reason="there are no time zones")
def test_the_time_zone_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    renderer = TemplateRenderer("{{ strftime_now('%H') }}")
    here = subprocess.run(["date", "+%H"], capture_output=True, text=True, check=True).stdout.strip()
    assert int(renderer.render({})) in (int(here), (int(here) + 1) % 24)
    renderer.close()
