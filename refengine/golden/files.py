"""A suite as files: made, and checked by making it again.

    suite.json                   what is there, and how much of it there must be
    SHA256SUMS                   every other file; `sha256sum -c SHA256SUMS` needs nothing of ours
    schema/{suite,case}.schema.json
    cases/OP/TIER/REGIME/SHAPE/  case.json, inputs.safetensors, truth.safetensors

A case appears by one rename of its folder, so a kill or a full disk loses no finished case and leaves no half of one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from .. import ops
from ..engine.run import execute
from ..errors import FileError, InputError
from ..io import tensorfile, whole
from .cases import SUITES, Case, suite
from .certify import spread, values
from .families import FAMILIES, LAWS
from .integrity import CASE, SUITE, SUMS, Finding, check_case, check_suite, check_sums, is_suite, read_json, sums
from .problems import problem
from .record import INPUTS, LICENSE, TRUTH, asked, canonical, digest, written
from .schema import SCHEMAS, VERSION

CERTIFICATES = {
    "o.delta": "no entry of the row is further from the exact answer, rounded up",
    "final_state.delta": "the Euclidean norm of the column's error is at most that, rounded up; likewise each state",
}
ALGORITHM = "philox4x32-10; a case's stream n has counter (block, 0, n, 0)"
TRANSFORMS = {
    "integers": "floor(word (high - low + 1) / 2^32) + low",
    "uniform": "(floor(word / 2^8) + 1/2) 2^-24",
    "normal": "(sum of the four 16-bit halves of two words - 131070) 1.75 2^-16",
    "rounding": "to nearest even in the stored dtype",
}
Progress = Callable[[int, int], None]


# ---- making ----


def elements(record: Mapping[str, Any]) -> int:
    """Numbers to compare a candidate with."""
    total = 0
    for tensor in record["tensors"].values():
        if tensor["role"] in ("truth", "gradient"):
            count = 1
            for n in tensor["shape"]:
                count *= n
            total += count
    return total


def put(path: Path, data: bytes) -> None:
    try:
        whole.write(str(path), [data])
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror}).") from error


def write_case(case: Case, root: Path, low: bool = False) -> None:
    """One case, in a folder of its own beside its place, then renamed."""
    target = root / "cases" / case.id
    made = written(case, low)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
        try:
            tensors, metadata = made["inputs"]
            tensorfile.write(draft / INPUTS, tensors, metadata)
            tensorfile.write(draft / TRUTH, made["truth"])
            put(draft / CASE, canonical(made["case"]))
            draft.chmod(0o755)
            os.replace(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{target}: cannot be written ({error.strerror}).") from error


def make_named(name: str, case_id: str, root: str, low: bool) -> str:
    """`write_case` in a process of its own, which finds the case by its id."""
    case = named_case(name, case_id)
    assert case is not None
    write_case(case, Path(root), low)
    return case_id


def prepare_root(root: Path) -> None:
    """A folder that is new, empty, or a suite under way."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        strange = [
            p.name for p in root.iterdir() if p.name not in ("cases", "schema", SUITE, SUMS) and p.name[0] != "."
        ]
    except OSError as error:
        raise FileError(f"{root}: cannot be made a folder of goldens ({error.strerror}).") from error
    if strange:
        raise InputError(
            f"{root} holds {strange[0]!r}, which is no part of a suite; -o takes a new or an empty folder."
        )
    for left in root.glob(".making-*"):
        shutil.rmtree(left, ignore_errors=True)


def make(
    name: str,
    root: Path,
    only_ops: Sequence[str] = (),
    tiers: Sequence[str] = (),
    jobs: int = 1,
    low: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a suite, or what is missing of it; returns what suite.json says."""
    cases = suite(name, tuple(only_ops), tuple(tiers))
    prepare_root(root)
    missing = [case for case in cases if not is_finished(root / "cases" / case.id)]
    done = len(cases) - len(missing)

    def finished() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(cases))

    if jobs == 1:
        for case in missing:
            write_case(case, root, low)
            finished()
    else:
        with ProcessPoolExecutor(min(jobs, max(1, len(missing))), mp_context=get_context("spawn")) as pool:
            try:
                waiting = [pool.submit(make_named, name, case.id, str(root), low) for case in missing]
                for future in as_completed(waiting):
                    future.result()
                    finished()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return close(name, root, cases)


def is_finished(folder: Path) -> bool:
    """Whether a case is there; one that is damaged is refused, not made again over somebody's file."""
    if not folder.is_dir():
        return False
    wrong = [f for f in check_case(folder, folder.parents[4]) if f.kind != "stale"]
    if wrong:
        raise FileError(f"{wrong[0].text} Remove the folder to have the case made again.")
    return True


def close(name: str, root: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """suite.json, the schemas, and the sums over all."""
    records = [read_json(root / "cases" / case.id / CASE) for case in sorted(cases, key=lambda case: case.id)]
    least: dict[str, int] = {}
    proved: dict[str, dict[str, int]] = {}
    for record in records:
        least[record["op"]["name"]] = least.get(record["op"]["name"], 0) + elements(record)
        tier = proved.setdefault(record["tier"], {})
        for road, count in record["certificate"]["correctly_rounded"].items():
            tier[road] = tier.get(road, 0) + count
    said = {
        "schema": "refengine.suite",
        "schema_version": VERSION,
        "name": name,
        "license": LICENSE,
        "min_cases": len(records),
        "min_elements": least,
        "correctly_rounded": proved,
        "families": {n: {"what": f.what, "exposes": f.exposes, "home": list(f.home)} for n, f in FAMILIES.items()},
        "laws": LAWS,
        "certificates": CERTIFICATES,
        "nonfinite": "forbidden in every tensor; a zero's sign is ignored",
        "generator": {"name": "refengine", "algorithm": ALGORITHM, "transforms": TRANSFORMS},
        "cases": [{"id": r["id"], "elements": elements(r), "content_sha256": r["content_sha256"]} for r in records],
    }
    put(root / SUITE, canonical(said))
    (root / "schema").mkdir(exist_ok=True)
    for what, schema in SCHEMAS.items():
        put(root / "schema" / f"{what}.schema.json", canonical(schema))
    put(root / SUMS, sums(root))
    return said


# ---- checking ----


def named_case(name: str, case_id: str) -> Case | None:
    """A suite's case by its id."""
    op = case_id.split("/")[0]
    return next((case for case in suite(name) if case.id == case_id), None) if op in ops.names() else None


def remade(root: str, name: str, case_id: str) -> list[Finding]:
    """A case made again, and compared to the bit."""
    case = named_case(name, case_id)
    if case is None:
        return [Finding("stale", f"{case_id}: is no case of the suite {name!r} in this version.")]
    folder = Path(root) / "cases" / case_id
    low = any(t["role"] == "truth_lo" for t in read_json(folder / CASE)["tensors"].values())
    with tempfile.TemporaryDirectory() as scratch:
        write_case(case, Path(scratch), low)
        again = Path(scratch) / "cases" / case_id
        differ = [f for f in (INPUTS, TRUTH, CASE) if (folder / f).read_bytes() != (again / f).read_bytes()]
    return [Finding("numbers", f"{folder / file}: made again it has other bytes.") for file in differ]


def recomputed(root: str, name: str, case_id: str) -> list[Finding]:
    """What of a case can be made again without balls: its inputs, to the bit, and its outputs by the float64 kernel,
    which must be the golden's within both bounds."""
    case = named_case(name, case_id)
    if case is None:
        return [Finding("stale", f"{case_id}: is no case of the suite {name!r} in this version.")]
    folder = Path(root) / "cases" / case_id
    record, (truth, _) = read_json(folder / CASE), tensorfile.read(folder / TRUTH)
    arguments, _, (inputs, _) = asked(case)
    said = {n: t["sha256"] for n, t in record["tensors"].items() if t["file"] == INPUTS}
    wrong = [f"{INPUTS}: {n}" for n in sorted({*said, *inputs}) if n not in inputs or said.get(n) != digest(inputs[n])]
    solution = execute(problem(case.op.name, arguments), 1)
    for n, x in values(solution).items():
        allowed = spread(solution.bound[n] + truth[f"{n}.delta"], n)
        wrong += [] if (np.abs(x - truth[n]) <= allowed).all() else [f"{TRUTH}: {n}"]
    return [Finding("numbers", f"{folder / what} is not what is made of it here.") for what in wrong]


def left_out() -> str | None:
    """What `check` cannot do on this machine, if there is such."""
    if find_spec("flint") is not None:
        return None
    return (
        "Without python-flint inputs were made again to the bit, outputs to within their bounds; "
        "not gradients, and not the rounding of the last bit."
    )


def check(
    root: Path, regenerate: bool = True, jobs: int = 1, progress: Progress | None = None
) -> tuple[list[Finding], dict[str, Any]]:
    """Everything that is wrong with a suite: (findings, what suite.json says)."""
    is_suite(root)
    try:
        wrong, said = check_suite(root)
    except FileError as error:
        return [Finding("corrupt", str(error))], {}
    if any(f.kind == "corrupt" for f in wrong):
        return wrong, said
    wrong += check_sums(root)
    named = {c["id"]: c for c in said["cases"]}
    there = sorted(p.parent.relative_to(root / "cases").as_posix() for p in (root / "cases").rglob(CASE))
    for case_id in there:
        wrong += check_case(root / "cases" / case_id, root)
        if case_id not in named:
            wrong.append(Finding("corrupt", f"{root / SUITE}: does not name the case {case_id}."))
        elif (
            not wrong
            and read_json(root / "cases" / case_id / CASE)["content_sha256"] != named[case_id]["content_sha256"]
        ):
            wrong.append(Finding("corrupt", f"{root / SUITE}: has another content_sha256 for {case_id}."))
    if regenerate and not any(f.kind in ("corrupt", "stale") for f in wrong):
        wrong += regenerated(root, said["name"], there, jobs, progress)
    return wrong, said


def regenerated(root: Path, name: str, cases: Sequence[str], jobs: int, progress: Progress | None) -> Iterator[Finding]:
    again = recomputed if left_out() else remade
    if name not in SUITES:
        yield Finding("stale", f"{root / SUITE}: there is no suite {name!r} in this version.")
        return
    if jobs == 1:
        for i, case_id in enumerate(cases):
            yield from again(str(root), name, case_id)
            if progress is not None:
                progress(i + 1, len(cases))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(again, str(root), name, case_id) for case_id in cases]
        for i, future in enumerate(as_completed(waiting)):
            yield from future.result()
            if progress is not None:
                progress(i + 1, len(cases))
