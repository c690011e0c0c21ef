"""Golden suites as files: the same bytes from any number of processes and from a kill, and no damage goes unseen."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest

import refengine
from refengine.data import goldens
from refengine.golden import certify, files, integrity
from refengine.golden.cases import suite
from refengine.golden.integrity import CASE
from refengine.golden.record import INPUTS, TRUTH, content, digest
from refengine.golden.schema import SCHEMAS, VERSION, faults
from refengine.io import tensorfile
from refengine.io import whole as writing

flint = pytest.importorskip("flint")
OPS = ("longhorn",)
TIERS = ("E", "3")
CORE = goldens("core")
IDS = sorted(case.id for case in suite("core", OPS, TIERS))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    files.make("core", root, OPS, TIERS)
    return root


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def bytes_of(root):
    return {name: (root / name).read_bytes() for name in [*integrity.files_of(root), integrity.SUMS]}


def kinds(root, **options):
    return [finding.kind for finding in files.check(root, **options)[0]]


def resummed(root):
    """As someone would who wants the sums to be right."""
    (root / integrity.SUMS).write_bytes(integrity.sums(root))


def test_the_shipped_suite_is_whole_and_of_this_version():
    findings, said = files.check(CORE, regenerate=False)
    assert findings == []
    assert [case["id"] for case in said["cases"]] == sorted(case.id for case in suite("core"))
    sums = subprocess.run(
        ["sha256sum", "--quiet", "-c", integrity.SUMS], cwd=CORE, capture_output=True, text=True, check=False
    )
    assert (sums.returncode, sums.stdout) == (0, "")


def test_made_again_a_case_has_the_shipped_bytes(made):
    for case_id in IDS:
        for file in (CASE, INPUTS, TRUTH):
            assert (made / "cases" / case_id / file).read_bytes() == (CORE / "cases" / case_id / file).read_bytes()


def test_two_processes_make_the_same_bytes(made, tmp_path):
    files.make("core", tmp_path, OPS, TIERS, jobs=2)
    assert bytes_of(tmp_path) == bytes_of(made)
    assert kinds(tmp_path, jobs=2) == []


def test_an_interrupted_run_goes_on(made, tmp_path, monkeypatch):
    written, count = files.written, []

    def killed_at_the_third(case, low):
        count.append(case.id)
        if len(count) == 3:
            raise KeyboardInterrupt
        return written(case, low)

    monkeypatch.setattr(files, "written", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        files.make("core", tmp_path, OPS, TIERS)
    assert len(list(tmp_path.rglob(CASE))) == 2
    assert not list(tmp_path.glob(".making-*"))
    (tmp_path / ".making-left").mkdir()  # what a kill that cannot be caught leaves
    files.make("core", tmp_path, OPS, TIERS)
    assert len(count) == len(IDS) + 1
    assert bytes_of(tmp_path) == bytes_of(made)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in made.iterdir())


def test_a_full_disk_loses_no_finished_case(tmp_path, monkeypatch):
    write, count = writing.write, []

    def full(target, pieces):
        count.append(target)
        if len(count) > 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(target, pieces)

    monkeypatch.setattr(writing, "write", full)
    with pytest.raises(refengine.FileError, match="No space left"):
        files.make("core", tmp_path, OPS, TIERS)
    assert len(list(tmp_path.rglob(CASE))) == 2
    assert not list(tmp_path.glob(".making-*"))


def test_a_finished_case_that_was_damaged_is_not_written_over(copy):
    path = copy / "cases" / IDS[0] / TRUTH
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(refengine.FileError, match=TRUTH):
        files.make("core", copy, OPS, TIERS)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))


def edit(path, change):
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


DAMAGES = {
    "a bit flipped in the truth": lambda root, case: flip(case / TRUTH),
    "a bit flipped in the inputs": lambda root, case: flip(case / INPUTS),
    "cut short": lambda root, case: (case / TRUTH).write_bytes((case / TRUTH).read_bytes()[:100]),
    "a file missing": lambda root, case: (case / TRUTH).unlink(),
    "a record missing": lambda root, case: (case / CASE).unlink(),
    "renamed": lambda root, case: case.rename(case.with_name("b9-t9-h9-hv9-k9-v9-bf16")),
    "another id": lambda root, case: edit(case / CASE, lambda r: r.update(id="longhorn/E/one_hot/other")),
    "hand-edited": lambda root, case: edit(case / CASE, lambda r: r["conventions"].update(scale=2.0)),
    "no JSON": lambda root, case: (case / CASE).write_text("{"),
    "a newer schema": lambda root, case: edit(case / CASE, lambda r: r.update(schema_version=VERSION + 1)),
    "a newer suite": lambda root, case: edit(root / integrity.SUITE, lambda r: r.update(schema_version=VERSION + 1)),
    "a stranger": lambda root, case: (case / "extra.txt").write_text("x"),
    "no sums": lambda root, case: (root / integrity.SUMS).unlink(),
    "no suite": lambda root, case: (root / integrity.SUITE).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(copy, damage):
    DAMAGES[damage](copy, copy / "cases" / IDS[0])
    findings, _ = files.check(copy, regenerate=False)
    assert "corrupt" in {finding.kind for finding in findings}
    assert all(str(copy) in finding.text for finding in findings)


@pytest.mark.parametrize(
    "damage", ["a bit flipped in the truth", "cut short", "a record missing", "another id", "a newer schema"]
)
def test_right_sums_do_not_hide_damage(copy, damage):
    DAMAGES[damage](copy, copy / "cases" / IDS[0])
    resummed(copy)
    assert set(kinds(copy, regenerate=False)) & {"corrupt", "short"}


def test_a_suite_with_fewer_cases_than_it_promises(copy):
    shutil.rmtree(copy / "cases" / IDS[0])
    edit(copy / integrity.SUITE, lambda r: r.update(cases=[c for c in r["cases"] if c["id"] != IDS[0]]))
    resummed(copy)
    assert set(kinds(copy, regenerate=False)) == {"short"}


def test_another_definition_makes_a_case_stale(copy, monkeypatch):
    monkeypatch.setattr(integrity, "definition", lambda op: "0" * 64)
    assert set(kinds(copy, regenerate=False)) == {"stale"}


def forged(root, change):
    """A golden with another number in it, and every digest made to fit."""
    case = root / "cases" / IDS[0]
    tensors, _ = tensorfile.read(case / TRUTH)
    tensors = {name: np.array(x) for name, x in tensors.items()}
    change(tensors)
    tensorfile.write(case / TRUTH, tensors)

    def refit(record):
        for name, x in tensors.items():
            record["tensors"][name]["sha256"] = digest(x)
        record["content_sha256"] = content(record["tensors"])

    edit(case / CASE, refit)
    record = json.loads((case / CASE).read_text(encoding="utf-8"))

    def rename(said):
        next(c for c in said["cases"] if c["id"] == IDS[0])["content_sha256"] = record["content_sha256"]

    edit(root / integrity.SUITE, rename)
    resummed(root)


def test_a_forged_number_is_found_by_making_it_again(copy):
    def change(tensors):
        tensors["o"][0, 3, 0, 0] += 0.25

    forged(copy, change)
    assert kinds(copy, regenerate=False) == []
    assert "numbers" in kinds(copy)


def test_without_balls_inputs_and_outputs_are_made_again(copy, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert "not gradients" in files.left_out()
    assert kinds(copy) == []

    def change(tensors):
        tensors["o"][0, 3, 0, 0] += 2.0**-40

    forged(copy, change)
    assert kinds(copy) == ["numbers"]


def test_without_balls_other_inputs_are_found(copy, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    right = files.asked

    def other(case):
        a, cotangents, (tensors, metadata) = right(case)
        return a, cotangents, ({**tensors, "q": -tensors["q"]}, metadata)

    monkeypatch.setattr(files, "asked", other)
    assert kinds(copy) == ["numbers"] * len(IDS)


def test_roads_that_disagree_stop_the_build(tmp_path, monkeypatch):
    right = certify.closed

    def wrong(p):
        o, final = right(p)
        o[0, 2, 1, 1] = o[0, 2, 1, 1] + flint.arb(2) ** -80
        return o, final

    monkeypatch.setattr(certify, "closed", wrong)
    with pytest.raises(certify.DisagreementError, match=r"o\[0, 2, 1, 1\] is .* away from the closed form"):
        files.make("core", tmp_path, OPS, ("3",))
    assert not list(tmp_path.rglob(CASE))


def test_records_are_as_their_schemas_say(made):
    jsonschema = pytest.importorskip("jsonschema")
    for what, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        said = json.loads((made / f"schema/{what}.schema.json").read_text(encoding="utf-8"))
        assert said == schema
    for path in made.rglob(CASE):
        jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), SCHEMAS["case"])


def test_the_schema_check_finds_what_is_wrong():
    record = json.loads((CORE / "cases" / IDS[0] / CASE).read_text(encoding="utf-8"))
    assert faults(record, SCHEMAS["case"]) == []
    for change, word in (
        (lambda r: r.pop("tier"), "lacks 'tier'"),
        (lambda r: r.update(tier="4"), "none of"),
        (lambda r: r.update(extra=1), "does not know"),
        (lambda r: r["tensors"]["o"].update(sha256="x"), "does not match"),
        (lambda r: r["tensors"]["o"].update(shape=[-1]), "below 0"),
        (lambda r: r.update(exposes="x"), "not array"),
        (lambda r: r.update(schema="other"), "not 'refengine.case'"),
    ):
        broken = json.loads(json.dumps(record))
        change(broken)
        assert any(word in text for text in faults(broken, SCHEMAS["case"]))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(refengine.InputError, match=r"notes\.txt"):
        files.make("core", tmp_path, OPS, TIERS)


def test_inputs_are_a_question_for_solve(tmp_path):
    """inputs.safetensors goes into `refengine solve --grad` as it is, and out comes the truth."""
    from click.testing import CliRunner

    from refengine.cli import group

    case = CORE / "cases" / next(c.id for c in suite("core", ("kda",)) if c.regime.name == "front")
    out = tmp_path / "answer.safetensors"
    result = CliRunner().invoke(group, ["solve", str(case / INPUTS), "-o", str(out), "--grad"])
    assert result.exit_code == 0, result.output
    answer, _ = tensorfile.read(out)
    truth, _ = tensorfile.read(case / TRUTH)
    for name in truth:
        if not name.endswith(".delta"):
            x, y = truth[name], answer[name].reshape(truth[name].shape)
            assert abs(x - y).max() <= 1e-11 * abs(x).max() + 1e-13, name


def test_the_digest_in_the_record_is_that_of_the_bytes():
    record = json.loads((CORE / "cases" / IDS[0] / CASE).read_text(encoding="utf-8"))
    tensors, _ = tensorfile.read(CORE / "cases" / IDS[0] / TRUTH)
    assert hashlib.sha256(tensors["o"].tobytes()).hexdigest() == record["tensors"]["o"]["sha256"]
