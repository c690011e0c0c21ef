"""What the tests of the command line share: a small problem in a file, and how a refusal looks."""

import numpy as np
import pytest
from click.testing import CliRunner

from refengine.cli import group
from refengine.io import tensorfile

B, T, H, K, V = 1, 7, 2, 3, 4


class Bench:
    """A folder with one problem in it."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(5)
        self.tensors = {
            "q": rng.standard_normal((B, T, H, K)),
            "k": rng.standard_normal((B, T, H, K)),
            "v": rng.standard_normal((B, T, H, V)),
            "g": -rng.random((B, T, H)),
            "beta": rng.random((B, T, H)),
        }
        self.metadata = {"op": "gated_delta_rule", "use_qk_l2norm": "true"}
        self.out = folder / "out.safetensors"

    def file(self, name="in.safetensors", metadata=None, **tensors):
        """The problem with some tensors replaced, added, or (None) left out."""
        tensors = {name: x for name, x in {**self.tensors, **tensors}.items() if x is not None}
        tensorfile.write(self.folder / name, tensors, {**self.metadata, **(metadata or {})})
        return self.folder / name

    def run(self, *args):
        return CliRunner().invoke(group, [str(a) for a in args], prog_name="refengine")

    def solve(self, source, *args, out=None):
        """Solve, and read what was written."""
        out = out or self.out
        result = self.run("solve", source, "-o", out, *args)
        assert result.exit_code == 0, result.output
        return tensorfile.read(out)

    def refused(self, *args, says):
        """Exit 2 with one sentence that holds all of `says`; nothing printed, nothing written, no traceback."""
        before = {p: p.read_bytes() for p in self.folder.iterdir() if p.is_file()}
        result = self.run(*args)
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.endswith(".\n") or result.stderr.endswith("?\n")
        assert result.stderr.count("\n") == 1
        for words in says:
            assert words in result.stderr
        assert {p: p.read_bytes() for p in self.folder.iterdir() if p.is_file()} == before

    def refused_file(self, source, *args, says):
        self.refused("solve", source, "-o", self.out, *args, says=says)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)
