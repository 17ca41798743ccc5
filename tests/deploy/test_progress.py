"""How `make up` shows the services: lines in a file, a table with a bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap

CODE = """
    from deploy.progress import Display

    with Display([("old", "healthy", "")]) as display:
        for state in ("waiting", "starting", "starting", "healthy"):
            why = "for [old]" if state == "waiting" else ""
            display.show([("old", "healthy", ""), ("new", state, why)])
        display.show([("old", "failed", "it ended [status 2]"), ("new", "healthy", "")])
"""


def shown(terminal: bool) -> str:
    words = [sys.executable, "-c", textwrap.dedent(CODE)]
    if not terminal:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(words, stdout=theirs, env=environment)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65_536):
            said += part
    except OSError:  # a terminal ends so
        pass
    assert process.wait(20) == 0
    os.close(ours)
    return said.decode()


def test_a_file_gets_one_line_for_each_change():
    lines = [line.split("] ", 1)[1] for line in shown(terminal=False).splitlines()]
    assert lines == ["new starting", "new healthy", "old failed: it ended [status 2]"]


def test_a_terminal_gets_a_bar_and_every_service():
    said = shown(terminal=True)
    assert "2/2" in said and "1/2" in said
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in said
    for words in ("waiting", "for [old]", "it ended [status 2]"):
        assert words in said
