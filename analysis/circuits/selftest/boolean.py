"""Two hops of Boolean logic on the bits of one token: x1 ∧ x2 in layer 0's MLP, then ∧ x3 in layer 1's.

Two more bits are random; layer 0 computes their AND, which nothing reads. In half of the pairs the clean answer is yes and
the counterfactual clears bits; in the other half one bit is missing and the counterfactual sets it.
"""

from random import Random

from analysis.circuits.selftest.known import Known, Named, NamedEdge, Names
from analysis.circuits.selftest.wiring import Wiring
from analysis.circuits.tasks.metrics import logit_difference
from analysis.circuits.tasks.task import Pair, Task

_BITS = ("x1", "x2", "x3", "x4", "x5")
_HOOKS = ("0.resid_pre", "0.mlp_out", "0.resid_post", "1.mlp_out", "1.resid_post")


def boolean_two_hops(n_pairs: int = 24, seed: int = 0) -> Known:
    """The model, its dictionaries and its task."""
    random = Random(seed)
    pairs = [_pair(random, yes=not i % 2) for i in range(2 * n_pairs)]
    task = Task("boolean-two-hops", pairs[:n_pairs], pairs[n_pairs:], logit_difference)
    wiring = Wiring([*_BITS, "one", "x1∧x2", "x4∧x5", "x1∧x2∧x3"], n_layers=2, d_mlp=2)
    for n in range(2 ** len(_BITS)):
        bits = _bits(n)
        wiring.token(_token(bits), **{name: float(bit) for name, bit in zip(_BITS, bits, strict=True)})
    wiring.position(1, one=1)
    wiring.neuron(0, 0, {"x1": 1, "x2": 1}, -1, {"x1∧x2": 1})
    wiring.neuron(0, 1, {"x4": 1, "x5": 1}, -1, {"x4∧x5": 1})
    wiring.neuron(1, 0, {"x1∧x2": 1, "x3": 1}, -1, {"x1∧x2∧x3": 1})
    wiring.logit("1", **{"x1∧x2∧x3": 1})
    wiring.logit("0", one=0.5)
    names = Names(wiring.model(task.name), {hook: wiring.dictionary() for hook in _HOOKS}, wiring.names)
    return names.known(task, _nodes, _edges, _indirect)


def _bits(n: int) -> tuple[int, ...]:
    return tuple(n >> i & 1 for i in range(len(_BITS)))


def _token(bits: tuple[int, ...]) -> str:
    """The character of these bits, one of 32."""
    return chr(ord("A") + sum(bit << i for i, bit in enumerate(bits)))


def _pair(random: Random, *, yes: bool) -> Pair:
    idle = [(random.randrange(2), random.randrange(2)) for _ in range(2)]
    lacking = random.randrange(1, 7) if yes else 1 << random.randrange(3)
    fewer = tuple(1 - (lacking >> i & 1) for i in range(3))
    full, less = _token((1, 1, 1, *idle[0])), _token((*fewer, *idle[1]))
    return Pair(full, less, ("1",), ("0",)) if yes else Pair(less, full, ("0",), ("1",))


def _moved(pair: Pair) -> list[str]:
    """Bits among x1, x2, x3 in which the prompts differ."""
    assert pair.corrupt is not None
    clean, corrupt = (_bits(ord(prompt) - ord("A")) for prompt in (pair.clean, pair.corrupt))
    return [name for name, a, b in zip(_BITS[:3], clean, corrupt, strict=False) if a != b]


def _nodes(pair: Pair) -> list[Named]:
    moved = _moved(pair)
    nodes = [("0.resid_pre", 1, name) for name in moved]
    nodes += [(hook, 1, "x1∧x2") for hook in ("0.mlp_out", "0.resid_post") if {"x1", "x2"} & set(moved)]
    nodes += [("0.resid_post", 1, "x3")] if "x3" in moved else []
    return nodes + [(hook, 1, "x1∧x2∧x3") for hook in ("1.mlp_out", "1.resid_post")]


def _edges(pair: Pair) -> list[NamedEdge]:  # noqa: ARG001 (the same in every pair)
    both, three = "x1∧x2", "x1∧x2∧x3"
    return [
        (("0.resid_pre", 1, "x1"), ("0.mlp_out", 1, both)), (("0.resid_pre", 1, "x2"), ("0.mlp_out", 1, both)),
        (("0.mlp_out", 1, both), ("0.resid_post", 1, both)), (("0.resid_pre", 1, "x3"), ("0.resid_post", 1, "x3")),
        (("0.resid_post", 1, both), ("1.mlp_out", 1, three)), (("0.resid_post", 1, "x3"), ("1.mlp_out", 1, three)),
        (("1.mlp_out", 1, three), ("1.resid_post", 1, three)), (("1.resid_post", 1, three), None),
    ]


def _indirect(pair: Pair) -> list[NamedEdge]:  # noqa: ARG001
    both, three = "x1∧x2", "x1∧x2∧x3"
    bits = [("0.resid_pre", 1, name) for name in _BITS[:3]]
    edges: list[NamedEdge] = [(bit, ("1.mlp_out", 1, three)) for bit in bits]
    edges += [(bit, ("0.resid_post", 1, both)) for bit in bits[:2]] + [(bit, None) for bit in bits]
    return [*edges, (("0.mlp_out", 1, both), ("1.mlp_out", 1, three)), (("1.mlp_out", 1, three), None)]
