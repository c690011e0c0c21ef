"""Goldens in other languages: a short reader in C and one in Node reproduce a case's content digest."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from refengine.data import goldens
from refengine.golden.cases import suite
from refengine.io.tensorfile import read

READERS = Path(__file__).parent / "readers"
CASES = [goldens("core") / "cases" / case.id for case in suite("core", ("comba", "kda")) if case.regime.name != "steps"]


def said(folder):
    return json.loads((folder / "case.json").read_text(encoding="utf-8"))["content_sha256"]


def code_lines(path):
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith(("//", "/*", "case's"))]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_reader_in_c(tmp_path):
    subprocess.run(["cc", "-Wall", "-Werror", "-O1", "-o", tmp_path / "read", READERS / "read.c"], check=True)
    for folder in CASES:
        command = f"{tmp_path / 'read'} inputs.safetensors truth.safetensors | LC_ALL=C sort | sha256sum"
        run = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True)
        assert run.stdout.split()[0] == said(folder)


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node")
def test_a_reader_in_node():
    for folder in CASES:
        run = subprocess.run(["node", READERS / "read.mjs", folder], capture_output=True, text=True, check=True)
        digest, total = run.stdout.split()
        assert digest == said(folder)
        o = read(folder / "truth.safetensors")[0]["o"]
        assert float(total) == sum(o.ravel().tolist())


def test_the_readers_are_short():
    for name in ("read.c", "read.mjs"):
        assert len(code_lines(READERS / name)) <= 25
