"""What the door to numba says, and the command line's sign of life."""

import logging
import sys

from refengine.cli import spoken_compiling
from refengine.kernels import _jit


def compiled(name):
    """A new kernel of that module, compiled."""
    part = _jit.part(eval("lambda x: x + 1.0"))
    part.py_func.__module__ = name
    part.compile("float64(float64)")


def test_a_compilation_is_logged_and_said_once_on_a_terminal(monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO, "refengine.kernels")
    compiled("elsewhere")
    assert not caplog.records
    compiled("refengine.kernels.none")
    assert [r.getMessage() for r in caplog.records] == ["compiling refengine.kernels.none.<lambda>"]
    for terminal in (True, False):
        with spoken_compiling():
            monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
            compiled("refengine.kernels.none")
            compiled("refengine.kernels.none")
        said = capsys.readouterr()
        assert said.err.count("Compiling kernels, once on this machine") == terminal and said.out == ""
    compiled("refengine.kernels.none")
    assert capsys.readouterr().err == ""
