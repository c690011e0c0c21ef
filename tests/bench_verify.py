"""What a verdict costs: `python tests/bench_verify.py`. An honest bfloat16 candidate of T = 4096, H = 16, K = V = 128,
judged whole (truth, ensemble, statistics, other criteria), against the float64 forward alone, both of this process's
processor time, best of three; and the most memory that the process held."""

from __future__ import annotations

import resource
import time

from refengine.engine.run import execute
from refengine.verify.emulate import Run, emulate
from refengine.verify.trials import trial
from refengine.verify.verdict import Judge, problem_of

OP, GRADE = "gated_delta_rule", "bf16"


def candidate(judge):
    o, final = emulate(judge.core, judge.policy, Run("chunk", 64))
    return {"o": o.astype(judge.policy.format("io").dtype), "final_state": final.astype("float32")}


def took(call):
    clock = time.process_time()
    call()
    return time.process_time() - clock


def main(rounds=3):
    size = dict(H=16, HV=16, K=128, V=128)
    small, p = (problem_of(OP, trial(OP, "mamba", 1, T=T, **size)) for T in (256, 4096))
    judge = Judge(small, GRADE)
    judge.verdict(candidate(judge))  # compiled
    got = candidate(Judge(p, GRADE))
    forward = min(took(lambda: execute(p)) for _ in range(rounds))
    whole = min(took(lambda: Judge(p, GRADE).verdict(got)) for _ in range(rounds))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"forward {forward:.3g} s; verdict {whole:.3g} s, {whole / forward:.1f} times that; {held:.2f} GiB at most")


if __name__ == "__main__":
    main()
