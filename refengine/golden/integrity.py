"""Whether a suite's files are whole: every checksum, record and promise, and the definitions they were made from.
Nothing is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ops
from ..engine.checks import chosen
from ..errors import FileError, InputError
from ..io import tensorfile
from .record import INPUTS, TRUTH, content, definition, digest, sha256
from .schema import SCHEMAS, VERSION, faults

SUMS, SUITE, CASE = "SHA256SUMS", "suite.json", "case.json"


@dataclass(frozen=True)
class Finding:
    """kind: "corrupt" or "stale" (exit 4), "short" (exit 5), "numbers" (exit 1)."""

    kind: str
    text: str


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise FileError(f"{path}: is no JSON ({str(error).splitlines()[0]}).") from error
    if not isinstance(value, dict):
        raise FileError(f"{path}: is no JSON object.")
    return value


def check_sums(root: Path) -> Iterator[Finding]:
    """Every file is in SHA256SUMS, every line of it is a file, every sum is right."""
    try:
        lines = (root / SUMS).read_text(encoding="utf-8").splitlines()
        said = {name: total for total, _, name in (line.partition("  ") for line in lines)}
    except (OSError, ValueError):
        yield Finding("corrupt", f"{root / SUMS}: cannot be read.")
        return
    here = set(files_of(root))
    for name in sorted(here | set(said)):
        if name not in here:
            yield Finding("corrupt", f"{root / name}: is in {SUMS}, but missing.")
        elif name not in said:
            yield Finding("corrupt", f"{root / name}: is not in {SUMS}.")
        elif sha256((root / name).read_bytes()) != said[name]:
            yield Finding("corrupt", f"{root / name}: its SHA-256 is not the one in {SUMS}.")


def check_case(folder: Path, root: Path) -> list[Finding]:
    """One case against its own record, and against the definition it was made from."""
    where = folder / CASE
    try:
        record = read_json(where)
        if isinstance(record.get("schema_version"), int) and record["schema_version"] > VERSION:
            return [
                Finding("corrupt", f"{where}: has schema version {record['schema_version']}; {VERSION} is known here.")
            ]
        wrong = [Finding("corrupt", f"{where}: {text}.") for text in faults(record, SCHEMAS["case"])]
        if wrong:
            return wrong
        wrong = []
        if record["id"] != folder.relative_to(root / "cases").as_posix():
            wrong.append(Finding("corrupt", f"{where}: says it is {record['id']!r}, but lies elsewhere."))
        if content(record["tensors"]) != record["content_sha256"]:
            wrong.append(Finding("corrupt", f"{where}: its content_sha256 is not that of its tensors."))
        for file in (INPUTS, TRUTH):
            wrong += check_tensors(folder / file, {n: t for n, t in record["tensors"].items() if t["file"] == file})
    except FileError as error:
        return [Finding("corrupt", str(error))]
    name = record["op"]["name"]
    if name not in ops.names():
        wrong.append(Finding("stale", f"{where}: there is no op {name!r} in this version."))
    elif definition(chosen(ops.get(name), record["conventions"]["options"])[0]) != record["op"]["definition_sha256"]:
        wrong.append(Finding("stale", f"{where}: {name} is defined otherwise in this version."))
    return wrong


def check_tensors(path: Path, said: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    tensors, _ = tensorfile.read(path)
    for name in sorted(set(tensors) ^ set(said)):
        here, there = (path.name, CASE) if name in tensors else (CASE, path.name)
        yield Finding("corrupt", f"{path}: {name} is in {here}, but not in {there}.")
    for name in sorted(set(tensors) & set(said)):
        if list(tensors[name].shape) != said[name]["shape"] or digest(tensors[name]) != said[name]["sha256"]:
            yield Finding("corrupt", f"{path}: {name} is not what {CASE} says.")


def check_suite(root: Path) -> tuple[list[Finding], dict[str, Any]]:
    """suite.json, and whether what it promises is there."""
    said = read_json(root / SUITE)
    if isinstance(said.get("schema_version"), int) and said["schema_version"] > VERSION:
        text = f"{root / SUITE}: has schema version {said['schema_version']}; {VERSION} is known here."
        return [Finding("corrupt", text)], said
    wrong = [Finding("corrupt", f"{root / SUITE}: {text}.") for text in faults(said, SCHEMAS["suite"])]
    if wrong:
        return wrong, said
    there = [c for c in said["cases"] if (root / "cases" / c["id"] / CASE).is_file()]
    if len(there) < said["min_cases"]:
        absent = next((c["id"] for c in said["cases"] if c not in there), "none is named")
        text = f"{root / SUITE}: promises {said['min_cases']} cases, {len(there)} are there ({absent})."
        wrong.append(Finding("short", text))
    for op, least in said["min_elements"].items():
        have = sum(c["elements"] for c in there if c["id"].split("/")[0] == op)
        if have < least:
            wrong.append(Finding("short", f"{root / SUITE}: promises {least} numbers of {op}, {have} are there."))
    return wrong, said


def sums(root: Path) -> bytes:
    """What `sha256sum` prints of every file, by name."""
    lines = [f"{sha256((root / name).read_bytes())}  {name}\n" for name in files_of(root)]
    return "".join(lines).encode()


def files_of(root: Path) -> list[str]:
    return sorted(
        p.relative_to(root).as_posix()
        for p in root.rglob("*")
        if p.is_file() and p.name != SUMS and not hidden(p, root)
    )


def hidden(path: Path, root: Path) -> bool:
    """Ours while under way, or a package's own."""
    parts = path.relative_to(root).parts
    return any(part.startswith(".") or part in ("__init__.py", "__pycache__") for part in parts)


def is_suite(root: Path) -> None:
    """Refuse a path where nobody can have meant a suite to be; one that lacks some of its files is damaged."""
    if not root.is_dir():
        raise InputError(f"{root} is {'no folder' if root.exists() else 'not there'}; a golden suite is a folder.")
    if not any((root / name).exists() for name in (SUITE, SUMS, "cases")):
        raise InputError(f"{root} holds no golden suite: neither {SUITE} nor {SUMS} nor cases.")
