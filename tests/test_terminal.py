"""A run as it is seen in a real terminal: something is said at once, and no line stays there twice."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import pyte
import pytest

K4 = "world#blocks.2.hook_resid_post.k4"
ROWS, COLUMNS = 24, 80
LOADING = "Loading torch, transformers and lm_eval."
# Ends where torch would be loaded.
UNTIL_TORCH = """
import sys
from sae_lm_eval.cli.main import main

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stop())
sys.argv[0] = "sae-lm-eval"
main()
"""


def scrollback(command: list[str], cwd: Path) -> list[str]:
    """All lines that a terminal of 24 lines shows in the end, and those above them."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        os.execve(command[0], command, {**environment, "TERM": "xterm-256color"})
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    screen = pyte.HistoryScreen(COLUMNS, ROWS, history=10_000, ratio=0.5)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            stream.feed(os.read(descriptor, 2**16))
        except OSError:  # as Linux has it where the other end is closed
            break
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    above = ["".join(line[at].data for at in range(COLUMNS)) for line in screen.history.top]
    return [line.rstrip() for line in (*above, *screen.display)]


def test_no_line_of_a_run_stands_twice_in_a_terminal(tmp_path):
    arguments = ["--model_args", "pretrained=world", "--sae", K4, "--control", "zero", "--tasks", "sae_world_homes"]
    command = [sys.executable, "-m", "sae_lm_eval", "run", *arguments, "--limit", "20", "--output_path", "out"]
    lines = scrollback(command, tmp_path)
    assert lines[0] == LOADING
    assert any("loses" in line for line in lines)
    assert any(line.startswith("Written: out/report/report.html") for line in lines)
    said = Counter(line for line in lines if any(letter.isalnum() for letter in line))
    assert {line: count for line, count in said.items() if count > 1} == {}
    assert not any("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in line for line in lines), "the bar is gone"


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--model_args", "pretrained=world", "--sae", K4, "--tasks", "sae_world_homes", "--output_path", "out"],
        ["inspect", "--model_args", f"pretrained=world,sae={K4}"],
        ["talk", "--model_args", "pretrained=world", "--sae", K4],
    ],
    ids=lambda command: command[0],
)
def test_something_is_said_before_torch_is_loaded(command, tmp_path):
    done = subprocess.run([sys.executable, "-c", UNTIL_TORCH, *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.startswith(f"{LOADING}\n")
