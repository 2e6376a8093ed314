"""Daemon threads that are inside a C++ or Rust library when the interpreter ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

N_EXITS = 34 if os.environ.get("PYLLAMA2_SLOW_TESTS") else 3  # of each kind; 200 in all
# Prints, once the gate is closed: whether the thread was still inside, and how often it has entered since.
GATE = """
import atexit, time
def report():
    seen = entered[0]
    time.sleep(0.05)
    print(inside[0], entered[0] - seen)
atexit.register(report)  # runs after the gate's own, which is registered later

import threading
from pyllama2.process.exit_gate import GATE
inside, entered = [False], [0]
def work():
    while True:
        with GATE:
            entered[0] += 1
            inside[0] = True
            time.sleep(0.02)
            inside[0] = False
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
while not inside[0]:
    pass
"""
# A program that ends while its daemon threads generate. Arguments: threads of the team, daemons, what the end is.
PROGRAM = """
import os, signal, sys, threading, pyllama2
n_threads, n_daemons, end = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
llm = pyllama2.Llama(n_threads=n_threads)
def use():
    while True:
        llm.generate("Once upon a time", max_tokens=20)
        llm.tokenize("Once upon a time there was a fox. " * 20)
for _ in range(n_daemons):
    threading.Thread(target=use, daemon=True).start()
stream = llm.stream("One day")
next(stream)
class Last:
    def __del__(self):
        try:
            self.llm.generate("x", max_tokens=1)
        except pyllama2.Pyllama2Error:
            pass
last = Last()
last.llm = llm
if end == "close":
    llm.close()
elif end == "error":
    raise SystemExit("an error")
elif end == "interrupt":
    os.kill(os.getpid(), signal.SIGINT)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_gate_waits_and_holds_back() -> None:
    result = run(GATE)
    assert (result.returncode, result.stdout, result.stderr) == (0, "False 0\n", "")


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("1", "3", "end"), 0),
        (("2", "3", "end"), 0),
        (("2", "0", "end"), 0),
        (("1", "3", "close"), 0),
        (("1", "3", "error"), 1),
        (("2", "3", "interrupt"), -2),
    ],
)
def test_every_kind_of_exit_ends_by_itself(arguments: tuple[str, ...], code: int) -> None:
    for _ in range(N_EXITS):
        assert run(PROGRAM, *arguments).returncode == code


def test_the_gate_may_be_entered_again_inside() -> None:
    from pyllama2.process.exit_gate import GATE

    with GATE, GATE:
        pass
    assert not GATE._depths
