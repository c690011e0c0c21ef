"""What is installed is what is in the tree, and the README's commands are those that are run."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import refengine
from refengine.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
GOLDENS = ROOT / "data" / "goldens"
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALLED_AS = {"refengine": "refengine", "cli": "refengine.cli", "data": "refengine.data"}


def folders():
    """Every folder of the tree with code or data in it, by the name it is installed under."""
    for top, name in INSTALLED_AS.items():
        for folder in [ROOT / top, *(ROOT / top).rglob("*")]:
            if folder.is_relative_to(GOLDENS):
                continue  # files of the package above them, hundreds of folders deep
            if folder.is_dir() and "__pycache__" not in folder.parts and any(p.is_file() for p in folder.iterdir()):
                yield ".".join([name, *folder.relative_to(ROOT / top).parts]), folder


def test_every_folder_is_a_listed_package():
    found = dict(folders())
    assert sorted(found) == sorted(SETUPTOOLS["packages"])
    assert [name for name, folder in found.items() if not (folder / "__init__.py").is_file()] == []


def test_every_file_that_is_no_code_is_listed():
    for name, folder in folders():
        patterns = SETUPTOOLS["package-data"].get(name, [])
        for file in folder.iterdir():
            if file.is_file() and file.suffix != ".py":
                assert any(file.match(pattern) for pattern in patterns), f"{file} is in no package-data"


def test_the_version_is_read_without_importing():
    source = (ROOT / "refengine" / "__init__.py").read_text(encoding="utf-8")
    values = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__"
    ]
    assert values == [refengine.__version__]
    assert f"## {refengine.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_test_needs_no_torch():
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]
    assert not [word for word in wanted if word.startswith(("torch", "jax"))]


def test_the_goldens_are_listed_whole():
    assert "goldens/**/*" in SETUPTOOLS["package-data"]["refengine.data"]
    assert (GOLDENS / "core" / "SHA256SUMS").is_file()
    assert sum(p.stat().st_size for p in GOLDENS.rglob("*") if p.is_file()) <= 5_000_000


def commands():
    """The lines of the README's shell blocks that a person types."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_the_readme_starts_with_its_two_commands():
    assert commands()[:2] == [
        "python -m pip install -e . && refengine solve --sample",
        'python -m pip install -e ".[test]" && python -m pytest -n auto',
    ]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"mutate"}))  # which stands there with what it prints
def test_the_readme_names_every_command(name):
    assert any(line.startswith(f"refengine {name}") or f"refengine {name} " in line for line in commands())


def figures(text):
    """The printed result without what differs between machines."""
    return re.sub(r"solved in .*", "solved in ...", text)


def test_what_the_readme_shows_is_what_is_printed(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from refengine.cli import group

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(group, ["solve", "--sample"])
    assert figures(result.stdout) in figures(README)


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(shown) >= 2
    for block in shown:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    answers = re.findall(r"#> (.*)", README)
    assert answers
    assert answers == printed.splitlines()
