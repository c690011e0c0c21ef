"""Grades as they are spelled."""

import pytest

from refengine import InputError
from refengine.verify.policy import GRADES, policy


def test_parts_override_the_named_policy():
    p = policy("bf16:chunk=32,state=bf16,ftz")
    assert (p.io, p.operand, p.state, p.algorithm, p.chunk, p.ftz) == ("bf16", "bf16", "bf16", "chunk", 32, True)
    assert policy("f32:recurrent").algorithm == "recurrent"
    assert policy(p) is p
    assert [name for name in GRADES if policy(name).fine] == ["f64", "f32"]


@pytest.mark.parametrize(
    ("grade", "says"),
    {
        "bf61": "no grade 'bf61'; did you mean 'bf16'",
        "bf16:chunks=3": "part 'chunks=3'",
        "bf16:chunk=0": "chunk is '0'; it is a whole number from 1 to 1024",
        "bf16:state=bf8": "no number format 'bf8'",
        "bf16:state=f64": "state=f64, wider than its sums (f32)",
        "f32:accum=bf16": "accumulates in bf16",
    }.items(),
)
def test_a_grade_that_says_nothing_is_refused(grade, says):
    with pytest.raises(InputError) as refusal:
        policy(grade)
    assert says in str(refusal.value)
