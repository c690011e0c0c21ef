"""`refengine study`: what is printed, drawn and refused."""

import json
import struct
import zlib
from importlib import import_module
from pathlib import Path

import pytest

from refengine import study

ROOT = Path(__file__).parents[2]
TELLING = (["study", "context"], ["study", "ngram", "--text", "LICENSE"])  # the tables of the README


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text((ROOT / "LICENSE").read_text(encoding="utf-8")[:2500], encoding="utf-8")
    return path


def test_a_page_and_a_summary(bench, prose):
    result = bench.run("study", "bigram", "C11", "--text", prose)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "C6 bigram"
    assert any(line.startswith("  DeltaNet β=0.1: next-token accuracy") for line in lines)
    assert "  C6   bigram    holds" in lines
    assert "  C11  values    holds" in lines
    assert lines[-2].startswith(f"Text: {prose}, ")
    assert lines[-1].startswith("2 claims in ")
    assert result.stderr == ""  # no bar where there is no terminal


def test_all_figures_as_json(bench, prose):
    result = bench.run("study", "bigram", "ngram", "--text", prose, "--json")
    found = json.loads(result.stdout)
    assert [claim["name"] for claim in found["claims"]] == ["bigram", "ngram"]
    assert found["text"]["source"] == str(prose)
    for claim in found["claims"]:
        assert claim["verdict"] in ("holds", "holds with a limit", "fails")
        for figure in claim["figures"]:
            low, high = figure["low"], figure["high"]
            inside = (low is None or low <= figure["measured"]) and (high is None or figure["measured"] <= high)
            assert inside == figure["within"]


def png(path):
    """Its size, and whether its data are whole."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, packed = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    assert len(set(zlib.decompress(packed))) > 20  # something is drawn
    return struct.unpack(">II", data[16:24])


def test_plots_are_drawn(bench, prose, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("refengine.study.context"), "SAMPLES", 8)
    monkeypatch.setattr(import_module("refengine.study.ngram"), "D", 64)
    result = bench.run("study", *study.plots.DRAWN, "--text", prose, "--plot", tmp_path / "new" / "plots")
    assert result.exit_code == 0, result.output
    drawn = sorted((tmp_path / "new" / "plots").iterdir())
    assert [path.stem for path in drawn] == sorted(name for each in study.plots.DRAWN.values() for name in each)
    assert all(min(png(path)) >= 900 for path in drawn)
    assert sorted(result.stderr.split()) == [str(path) for path in drawn]


@pytest.mark.parametrize("arguments", TELLING, ids=["context", "ngram"])
def test_the_readme_has_these_very_tables(bench, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    tables = bench.run(*arguments, "--markdown").stdout.strip()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"refengine {' '.join(arguments)} --markdown" in readme
    assert tables in readme, f"put the output of `refengine {' '.join(arguments)} --markdown` into README.md"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has 0 of the 1000 characters"),
        (b"x", "has 1 of the 1000 characters"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(60), "byte 7 is NUL"),
        (b"\xff\xfe" + b"text" * 100, "is not UTF-8 text: byte 0 is 0xff"),
        (b"a" * 1000, "all of them 'a'"),
    ],
)
def test_a_file_that_is_no_text_is_refused(bench, tmp_path, content, says):
    path = tmp_path / "given.txt"
    path.write_bytes(content)
    bench.refused("study", "identity", "--text", path, says=[str(path), says])


def test_other_mistakes(bench, tmp_path, prose):
    bench.refused("study", "--text", tmp_path / "none.txt", says=["none.txt", "No such file"])
    bench.refused("study", "--text", tmp_path, says=["is a directory or a device"])
    bench.refused("study", "bigrams", says=["no claim 'bigrams'", "did you mean 'bigram'"])
    bench.refused("study", "C12", says=["no claim 'C12'"])
    bench.refused("study", "--scale", "0", says=["--scale", "0 is not in the range"])
    bench.refused("study", "context", "--plot", prose, says=["prose.txt", "is no folder"])
    says = ["draws nothing of identity", "collapse, context"]
    bench.refused("study", "identity", "--plot", tmp_path / "new", says=says)
    assert not (tmp_path / "new").exists()
    bench.refused("study", "identity", "--json", "--markdown", says=["--json and --markdown are both given"])
