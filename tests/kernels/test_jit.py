"""What the door to numba says, and the command line's sign of life."""

import logging
import sys

import pytest
from numba.core.codegen import JitEngine

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


@_jit.inline
def least(x):
    return x + 1.0


@_jit.part
def below(x):
    return 2.0 * least(x)


@_jit.inline
def above(x):
    return below(x) * least(x)


def kernel(x):
    return above(x) - below(x)


def test_helpers_are_linked_and_only_their_kernel_is_translated(monkeypatch, tmp_path):
    """Each translation costs about what the kernel's costs, and there are dozens of helpers in one."""
    monkeypatch.setattr(_jit, "CACHE", tmp_path)
    compiled("elsewhere")  # numba translates a library of its own before its first function
    translated = []
    finish = JitEngine.finalize_object
    monkeypatch.setattr(JitEngine, "finalize_object", lambda engine: translated.append(engine) or finish(engine))
    assert _jit.njit(kernel)(3.0) == 8.0 * 4.0 - 8.0
    assert len(translated) == 1
    with pytest.raises(KeyError, match="only kernels call least"):
        least(3.0)
