"""What an op is: its inputs with their axes, its equations, its definition and its lowering. Declared once,
everything else derives.

Axes are letters: B rows, T tokens, H key heads, HV value heads (HV a multiple of H; value head h reads key head h //
(HV // H)), K key and V value channels, N sequences (B, or len(cu_seqlens) - 1). `T*n` counts `n` entries a token,
token by token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError, nearest

FLOATS = "bfloat16, float16, float8, float32, float64"


@dataclass(frozen=True)
class Tensor:
    """One input: its name, the layouts it may have (`"B T HV"`, ...), and what it means."""

    name: str
    axes: tuple[str, ...]
    doc: str
    required: bool = True
    # "query", "key", "value": what pairing and l2norm act on; "decay": a log gate, which grows if positive; "step": of
    # a delta rule, within 0 and 2
    role: str = ""
    integer: bool = False

    def layout(self, rank: int) -> tuple[str, ...] | None:
        """The axes of the layout with that many axes, if there is one."""
        return next((tuple(a.split()) for a in self.axes if len(a.split()) == rank), None)


@dataclass(frozen=True)
class Option:
    """One of an op's own options: its default (whose type is the option's) and what it may be."""

    default: bool | int | float | str
    doc: str
    least: float = 1  # of a number
    choices: tuple[str, ...] = ()  # of a word
    goes_with: tuple[str, tuple[Any, ...]] | None = None  # another option, and which of its values use this one


@dataclass(frozen=True)
class Reading:
    """The op as online learning: what is trained, on what, how, and how it forgets."""

    model: str
    loss: str
    optimiser: str
    forgetting: str
    batch: str = "1 token"


@dataclass(frozen=True)
class Mutant:
    """A mistake that people make, as an exact alteration of the float64 solution or of any emulation.

    acts      "core": `alter` takes the lowered problem (verify/emulate.py's Core) and returns an altered one
              "chunk": `slips` names what is wrong in the chunk algebra (kernels/emulate.py)
              "rounding": `rounds` holds the policy's formats that are secretly others
              "answer": `alter` takes the outputs {"o": ..., "final_state": ...} and the core, and returns others
              "step": `alter` takes the op's `step` and returns a mistaken one (families that no core hosts)
    precision: it only rounds where it should not; every other mutant is wrong in exact arithmetic too. An `alter` that
    returns None does not apply to that problem.
    """

    name: str
    doc: str
    acts: str
    alter: Callable[..., Any] | None = None
    slips: tuple[str, ...] = ()
    rounds: Mapping[str, str] = field(default_factory=dict)
    precision: bool = False


STATE = Tensor("initial_state", ("N HV K V",), "the memory before the first token; zeros if absent", required=False)


@dataclass(frozen=True)
class Op:
    """An op, declared. `step` is the definition; `lower` maps the same inputs onto a kernel family.

    step(S, *, q, k, ...) -> (S, o): one token of one value head, in NumPy arithmetic alone, so that the same lines
    run in float64, in complex128 and over python-flint balls (object arrays). It may also take `scale`, `convention`,
    `head`, `heads` and the op's options. S is an array, or a tuple of them where `states` has several. Where the op
    is `chunked`, one call takes the chunk_size tokens of a mini-batch ([C, K], ...; the last one may be shorter) and
    gives their outputs [C, V]; without the option chunk_size it takes all tokens of a sequence. Where it is
    `scheduled`, `update` and `apply` say which of the two is wanted.

    lower(x, **options) -> a family's inputs (`Delta`, ...): `x` maps each input's name to a `Bounded` or None; inputs
    with tokens have rank 4 ([B, T, H, D]; D = 1 for one number a head). Options are `convention`, the sizes (`H`,
    `HV`, `K`, `V`, ...) and the op's own.
    """

    name: str
    title: str
    paper: str
    reading: Reading
    equations: str
    inputs: tuple[Tensor, ...]
    step: Callable[..., Any]
    lower: Callable[..., Any]
    states: tuple[Tensor, ...] = (STATE,)
    chunked: bool = False
    scheduled: bool = False  # it may take `schedule`, its own list of mini-batches
    conventions: Mapping[str, str] = field(default_factory=lambda: {"default": "as the equations above"})
    scale: str = "K^-1/2"  # what scale=None means: "K^-1/2" or "1"
    scale_of: Mapping[str, str] = field(default_factory=dict)  # where a convention reads it otherwise
    options: Mapping[str, Option] = field(default_factory=dict)  # the op's own
    mutants: tuple[Mutant, ...] = ()  # mistakes of this op alone; verify/mistakes.py has those of them all
    compose: Callable[..., Op] | None = None  # of a family of ops: the one that its options make, or a refusal

    def tensor(self, name: str) -> Tensor:
        for t in self.inputs:
            if t.name == name:
                return t
        raise InputError(f"{self.name} has no input {name!r}{nearest(name, (t.name for t in self.inputs))}.")

    def role(self, role: str) -> tuple[Tensor, ...]:
        """The inputs that play a part in pairing and norms."""
        return tuple(t for t in self.inputs if t.role == role)

    def final_names(self) -> tuple[str, ...]:
        """What the final states are called in bounds and files: final_state, or final_state.NAME of several."""
        return ("final_state",) if len(self.states) == 1 else tuple(f"final_state.{t.name}" for t in self.states)

    def convention(self, name: str | None) -> str:
        """The named convention, or the default (the first)."""
        if name is None:
            return next(iter(self.conventions))
        if name not in self.conventions:
            raise InputError(f"{self.name} has no convention {name!r}{nearest(name, self.conventions)}.")
        return name

    def arguments(self, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """What of `given` the function asks for by name."""
        return {name: given[name] for name in inspect.signature(function).parameters if name in given}

    def __call__(
        self,
        *tensors: Any,
        scale: float | None = None,
        initial_state: Any = None,
        output_final_state: bool = True,
        cu_seqlens: Any = None,
        use_qk_l2norm_in_kernel: bool = False,
        **options: Any,
    ) -> tuple[Any, Any]:
        """FLA-shaped: (o, final_state or None), the tensors in the order of `inputs`."""
        import refengine

        if len(tensors) > len(self.inputs):
            names = ", ".join(t.name for t in self.inputs)
            raise InputError(f"{self.name} takes {len(self.inputs)} tensors ({names}), {len(tensors)} were given.")
        named = dict(zip((t.name for t in self.inputs), tensors, strict=False))
        twice = sorted(set(named) & set(options))
        if twice:
            raise InputError(f"{self.name}: {twice[0]!r} is given by position and by name.")
        options.setdefault("use_qk_l2norm", use_qk_l2norm_in_kernel)
        solution = refengine.solve(
            self.name, **named, **options, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens
        )
        return solution.o, solution.final_state if output_final_state and self.states else None


@dataclass
class FastWeights:
    """The inputs of the fast weights (kernels/fast_weights.py): a memory trained by mini-batches.

    `model` is "linear", "mlp" or "swiglu", `loss` "squared", "dot", "huber" or "power", `read` "during", "before" or
    "after" the update. `theta` holds the step of all weights, or those of gate, second layer and up; `decay`, `eta` are
    the forgetting and the momentum of each token, `reader` a factor of the steps that a token sees ("harmonic": 1 / its
    place in the mini-batch); None for one, and for no momentum. `slots` says what each of the op's states is to the
    kernel, and `start` [HV, ...] what a state is where none is given. `whole` makes one step of a mini-batch, which
    `muon` [n, 3] (Newton-Schulz coefficients) orthogonalises.
    """

    q: Any
    k: Any
    v: Any
    theta: tuple[Any, ...]
    slots: tuple[str, ...]
    model: str = "linear"
    activation: str = "gelu"
    loss: str = "squared"
    loss_parameter: float = 0.0
    read: str = "during"
    output: str = "plain"  # o = Z, "query": q + LN(Z), "self": Z + LN(Z)
    norm: tuple[Any, ...] = ()  # the LayerNorm's weight and bias [HV, V], where there is one
    norm_eps: float = 1e-6
    decay: Any = None
    before: bool = False  # the gradient is taken at the decayed weights
    eta: Any = None
    reader: Any = None
    whole: bool = False
    muon: Any = None
    grouped: bool = False  # gate and up are orthogonalised as one matrix
    overwrite: bool = False  # the step replaces the weights
    weight_norm: str = "none"  # or "post", "pre"
    norm_inside: bool = False  # its 1e-5 stands under the root
    start: Mapping[str, Any] = field(default_factory=dict)
    backwards: bool = False  # the channels of q, k, v and o are taken in the opposite order

    @property
    def by_channel(self) -> bool:
        """Whether every key channel decays by a factor of its own: of one layer, without bias."""
        return self.decay is not None and self.decay.value.shape[-1] > 1


@dataclass
class Delta:
    """The inputs of the delta core (kernels/delta.py), every one a `Bounded` [B, T or T * micro, heads, channels].

        S~ = diag(a) S;   u = v - e . (S~ or S);   S' = S~ + k (b u)';   o = scale S'' q

    `e` is None (nothing erased) or ERASE_KEY (the write key itself). `b` and `a` are None for one. The error of `a`
    is relative. `folded` says that value channels were made heads ([B, T, HV * V, 1]), because each has a decay of
    its own.
    """

    q: Any
    k: Any
    v: Any
    e: Any = None
    b: Any = None
    a: Any = None
    order: str = "post"
    micro: int = 1
    folded: bool = False


ERASE_KEY = "key"


@dataclass
class Mesa:
    """The inputs of the exact learner (kernels/mesa.py), every one a `Bounded` [B, T, heads, channels].

        H' = a H + b k k';   G' = a G + b k v';   (H' + Lambda) x = q;   y = q + mix (x - q);   o = scale G'' y

    `a` and `b` have one channel (the error of `a` is relative); `mix` is None where y = x. `lamb` [1, 1, heads, K] is
    Lambda's diagonal, or [1, 1, heads, 1] where `share` says that it is that share of |H'| (Frobenius). `solver` is
    "exact", "cg" or "chebyshev"; `start` is "zero" or "diagonal".
    """

    q: Any
    k: Any
    v: Any
    a: Any
    b: Any
    lamb: Any
    mix: Any = None
    share: bool = False
    solver: str = "exact"
    iterations: int = 0
    eps: float = 0.0
    start: str = "zero"
    omega: float = 2.0  # the first of chebyshev


@dataclass
class Softmax:
    """The inputs of softmax attention (kernels/softmax.py), every one a `Bounded` [B, T, heads, channels]."""

    q: Any
    k: Any
    v: Any


def low_rank(a: Any, b: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """b (a' S) + k v' as two micro-steps that predict before the decay, S <- S~ + b (0 + a' S) and S <- S + k v':
    their k, e, v."""
    return b.interleave(k), (-a).interleave(a.filled(0.0)), v.filled(0.0).interleave(v)
