"""Small cases for the GPU. Run as a program with NUMBA_ENABLE_CUDASIM=1, as tests/engine/test_delta_cuda.py does, it
solves each on the CPU and on the simulated device and prints a line of JSON for it; with `-` those that it is asked
for, line by line."""

import json
import sys
from unittest.mock import patch

import numpy as np
from spanning import case

import refengine

SMALL = dict(B=1, T=5, H=1, HV=2, K=5, V=6)
ONE = dict(B=1, H=1, HV=1)
F32 = dict(precision="float32")

# name: (op, shape, arguments of solve, tokens in a window or None, bytes of device memory or None)
CASES = {
    "scalar decay, key erased": ("gated_delta_rule", SMALL, {}, None, None),
    "float32": ("gated_delta_rule", SMALL, F32, None, None),
    "decay by channel": ("kda", dict(ONE, T=4, K=9, V=3), {}, None, None),
    "decay by channel in float32": ("kda", dict(ONE, T=4, K=8, V=3), F32, None, None),
    "before the decay": ("comba", dict(SMALL, HV=1), {}, None, None),
    "a vector of its own, decay by channel": ("gdn2", dict(ONE, T=4, K=6, V=3), {}, None, None),
    "two micro-steps before the decay": ("rwkv7", dict(ONE, T=3, K=5, V=3), {}, None, None),
    "three micro-steps, windows of two tokens": ("gated_delta_product", dict(SMALL, n=3, HV=1), {}, 2, None),
    "nothing erased, zeros to begin with": ("linear_attn", dict(SMALL, start=False), {}, None, None),
    "a step for each value": ("delta_rule", dict(SMALL, HV=1, wide_beta=True), {}, None, None),
    "columns as heads": ("longhorn", dict(ONE, T=3, K=3, V=2), {}, None, None),
    "packed, states kept": ("gla", dict(H=1, HV=1, K=3, V=2, cu_seqlens=[0, 3, 9]), dict(states_at=[0, 2, 3]), 4, None),
    "several rows": ("retention", dict(B=3, T=2, H=1, HV=2, K=2, V=1), {}, None, None),
    "norms measured afresh, in windows": ("gated_delta_rule", dict(ONE, T=70, K=3, V=2), {}, 9, None),
    "one row": ("kda", dict(ONE, T=3, K=1, V=1), {}, None, None),
    "no tokens": ("gated_delta_rule", dict(SMALL, T=0), {}, None, None),
    "a factor a token": ("mesa_net", dict(SMALL, T=4, K=3), {}, None, None),
    "a factor a token, in float32": ("mesa_net", dict(ONE, T=3, K=9, V=2), F32, None, None),
    "systems in windows": ("mesa_net", dict(ONE, T=5, K=2, V=1), dict(states_at=[2]), None, 160),
    "no rows": ("gated_delta_rule", dict(SMALL, B=0), {}, None, None),
    "little memory": ("gated_delta_rule", dict(B=2, T=6, H=2, HV=4, K=3, V=2), {}, None, 8000),
}


def inputs(name):
    op, shape, more, _, _ = CASES[name]
    return op, case(op, **shape) | more


def strange(name):
    """Cases whose numbers are at the ends of the range."""
    op, x = inputs("scalar decay, key erased")
    if name == "not finite":
        x["v"][0, 2, 0, 1], x["k"][0, 3, 0, 2] = np.inf, np.nan
        return op, x | dict(allow_nonfinite=True)
    x["k"] *= 1e-200
    x["v"] *= -1e-200
    x["initial_state"] *= -0.0
    return op, x


def convolution(**how):
    """A short convolution on the key, with states before it."""
    rng = np.random.default_rng(8)
    weight, state = rng.standard_normal((5, 4)), rng.standard_normal((1, 5, 3))
    return refengine.Conv(weight, **{"bias": rng.standard_normal(5), "state": state, **how})


def compare(op, arguments):
    """Which outputs of the two devices differ, and how the second ran."""
    with np.errstate(all="ignore"):
        here, there = (refengine.solve(op, **arguments, threads=1, device=d) for d in ("cpu", "cuda"))
    pairs = {"o": (here.o, there.o)} | {n: (here.finals[n], there.finals[n]) for n in here.finals}
    pairs |= {f"{n}.bound": (here.bound[n], there.bound[n]) for n in here.bound}
    if here.states is not None:
        lists = [x if isinstance(x, tuple) else (x,) for x in (here.states, there.states)]
        pairs |= {f"states {i}": both for i, both in enumerate(zip(*lists, strict=True))}
    differ = [n for n, (x, y) in pairs.items() if not same(x, y)]
    return {"differ": differ, "device": there.info["device"], "plan": there.info["plan"]}


def compare_gradients(op, arguments):
    """Likewise of the gradients."""
    rng = np.random.default_rng(3)
    sizes = refengine.solve(op, **arguments, threads=1)
    owed = {"do": rng.standard_normal(sizes.o.shape), "dht": rng.standard_normal(sizes.final_state.shape)}
    with np.errstate(all="ignore"):
        here, there = (refengine.grad(op, **arguments, **owed, threads=1, device=d) for d in ("cpu", "cuda"))
    pairs = {n: (here[n], there[n]) for n in here}
    pairs |= {f"{n}.bound": (here.bound[n], there.bound[n]) for n in here.bound}
    pairs |= {f"{n}.condition": (here.condition[n], there.condition[n]) for n in here.condition}
    differ = [n for n, (x, y) in pairs.items() if not same(x, y)]
    return {"differ": differ, "device": there.info["device"], "plan": there.info["plan"]}


def same(x, y):
    """The same bits, any NaN for any other."""
    number = ~np.isnan(x)
    return (
        x.dtype == y.dtype
        and x.shape == y.shape
        and (number == ~np.isnan(y)).all()
        and bits(x, number) == bits(y, number)
    )


def bits(x, number):
    return np.ascontiguousarray(x[number]).tobytes()


def run(name):
    from refengine.engine import delta_cuda
    from refengine.kernels.cuda import _device

    if name == WINDOWS:
        given = case("gated_delta_rule", B=1, T=66, H=2, HV=4, K=2, V=3)
        with patch.object(_device, "SIMULATED_MEMORY", 45000):
            return compare_gradients("gated_delta_rule", given)
    if name.startswith(OF_GRADIENTS):
        op, given = inputs(name.removeprefix(OF_GRADIENTS))
        return compare_gradients(op, {n: x for n, x in given.items() if n != "states_at"})
    if name in CONVOLVED:
        given = case("gated_delta_rule", **dict(ONE, T=6, K=5, V=2))
        given["k"] *= 40 ** np.linspace(-2, 2, 6)[:, None, None]  # the sigmoid from one end to the other
        return compare("gated_delta_rule", given | {"conv_k": convolution(**CONVOLVED[name])})
    if name in STRANGE:
        return compare(*strange(name))
    if name == REFUSED:
        with patch.object(delta_cuda.cuda, "device_array", Stingy(delta_cuda.cuda.device_array)):
            return compare(*inputs("scalar decay, key erased"))
    _, _, _, window, memory = CASES[name]
    with (
        patch.object(delta_cuda, "SPAN", window or delta_cuda.SPAN),
        patch.object(_device, "SIMULATED_MEMORY", memory or _device.SIMULATED_MEMORY),
    ):
        return compare(*inputs(name))


class Stingy:
    """A device with less memory than it said: twice it refuses."""

    def __init__(self, usual):
        self.usual, self.left = usual, 2

    def __call__(self, *args, **kwargs):
        if self.left:
            self.left -= 1
            raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
        return self.usual(*args, **kwargs)


GRADIENTS = (
    "scalar decay, key erased",
    "float32",
    "decay by channel",
    "before the decay",
    "a vector of its own, decay by channel",
    "two micro-steps before the decay",
    "three micro-steps, windows of two tokens",
    "nothing erased, zeros to begin with",
    "a step for each value",
    "columns as heads",
    "packed, states kept",
    "no tokens",
    "no rows",
)
CONVOLVED = {
    "convolved": {},
    "convolved, with a residual": dict(residual=True, bias=None),
    "convolved, no activation": dict(activation=None),
}
STRANGE = ("not finite", "below the range")
REFUSED = "memory refused"
OF_GRADIENTS = "gradients: "
WINDOWS = "gradients: two windows, shared keys, little memory"
NAMES = [*CASES, *CONVOLVED, *STRANGE, REFUSED, *(OF_GRADIENTS + name for name in GRADIENTS), WINDOWS]

if __name__ == "__main__":
    for name in map(str.strip, sys.stdin) if "-" in sys.argv else NAMES:
        print(json.dumps({"case": name, **run(name)}), flush=True)
