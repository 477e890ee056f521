"""Hand-written heads: a copy head, and a two-hop lookup."""

from itertools import pairwise
from random import Random

from analysis.circuits.selftest.known import Known, Named, NamedEdge, Names, chain
from analysis.circuits.selftest.wiring import Wiring
from analysis.circuits.tasks.metrics import logit_difference
from analysis.circuits.tasks.task import Pair, Task

_LETTERS = "abcd"
_POINTERS, _VALUES, _NOISE = "0123", "wxyz", ".,"


def copy_head(n_pairs: int = 24, seed: int = 0) -> Known:
    """The last position attends to the one capital letter and copies it.

        baDc= → d      corrupt: dcAb= → a

    A second head copies the first letter to a direction that nothing reads. Attention doesn't depend on the letters, and
    every letter has all features (its own doubled), so that none switches on or off: logits and features are linear in
    every node that changes.
    """
    random = Random(seed)
    pairs = [_copied(random) for _ in range(2 * n_pairs)]
    task = Task("copy-head", pairs[:n_pairs], pairs[n_pairs:], logit_difference)
    wiring = Wiring(
        ["query", "mark", "first", *_LETTERS, *(f"copy:{x}" for x in _LETTERS), *(f"idle:{x}" for x in _LETTERS)],
        n_layers=1, n_heads=2, d_head=len(_LETTERS),
    )
    wiring.token("=", query=1)
    wiring.position(1, first=1)
    for letter in _LETTERS:
        both = {x: 1 + float(x == letter) for x in _LETTERS}
        wiring.token(letter, **both)
        wiring.token(letter.upper(), **both, mark=1)
        wiring.logit(letter, **{f"copy:{letter}": 1})
    wiring.head(0, 0, {"query": "mark"}, {x: f"copy:{x}" for x in _LETTERS}, score=40)
    wiring.head(0, 1, {"query": "first"}, {x: f"idle:{x}" for x in _LETTERS}, score=40)
    saes = {hook: wiring.dictionary() for hook in ("0.resid_pre", "0.attn_out", "0.resid_post")}
    names = Names(wiring.model(task.name), saes, wiring.names)
    return names.known(task, _copy_nodes, _copy_edges, _copy_indirect, linear=True)


def _copied(random: Random) -> Pair:
    """A pair whose prompts have different letters at every position."""
    where = random.randrange(len(_LETTERS))
    clean = [random.choice(_LETTERS) for _ in _LETTERS]
    corrupt = [random.choice([x for x in _LETTERS if x != letter]) for letter in clean]
    prompt, other = (
        "".join(x.upper() if i == where else x for i, x in enumerate(letters)) + "=" for letters in (clean, corrupt)
    )
    return Pair(prompt, other, (clean[where],), (corrupt[where],))


def _copy_stages(pair: Pair) -> list[list[Named]]:
    (mark,) = [i for i, x in enumerate(pair.clean, 1) if x.isupper()]
    letters, last = (pair.right[0], pair.wrong[0]), len(pair.clean)
    return [[("0.resid_pre", mark, x)] for x in letters] + [
        [(hook, last, f"copy:{x}")] for x in letters for hook in ("0.attn_out", "0.resid_post")
    ]


def _copy_nodes(pair: Pair) -> list[Named]:
    return [node for stage in _copy_stages(pair) for node in stage]


def _copy_edges(pair: Pair) -> list[NamedEdge]:
    right, wrong, *copies = _copy_stages(pair)
    return chain(right, *copies[:2]) + chain(wrong, *copies[2:])


def _copy_indirect(pair: Pair) -> list[NamedEdge]:
    right, wrong, *copies = _copy_stages(pair)
    edges: list[NamedEdge] = []
    for (letter,), (copied,), (after,) in ((right, *copies[:2]), (wrong, *copies[2:])):
        edges += [(letter, after), (letter, None), (copied, None)]
    return edges


def two_hop_lookup(n_pairs: int = 24, seed: int = 0) -> Known:
    """Layer 0 moves a pointer to the last position; layer 1 looks up the entry it points to and copies its value.

        .2 (0w)(1z)(2x)(3w) = → x      each entry is one character with a key and a value

    Half of the pairs differ in the pointer, half in the value looked up. All differ in noise and in the value of an entry
    that nothing points to. Attention leaks: 1 to 4 % goes to other entries.
    """
    random = Random(seed)
    pairs = [_looked_up(random, by_value=bool(i % 2)) for i in range(2 * n_pairs)]
    task = Task("two-hop-lookup", pairs[:n_pairs], pairs[n_pairs:], logit_difference)
    wiring = Wiring(
        ["query", "points", *(f"{kind}:{x}" for kind in ("pointer", "key", "moved") for x in _POINTERS),
         *(f"{kind}:{x}" for kind in ("value", "found") for x in _VALUES), *(f"noise:{x}" for x in _NOISE),
         *(f"idle:{x}" for x in _NOISE)], n_layers=2, n_heads=2, d_head=4,
    )
    wiring.token("=", query=1)
    for x in _NOISE:
        wiring.token(x, **{f"noise:{x}": 1})
    for key in _POINTERS:
        wiring.token(key, **{f"pointer:{key}": 1, "points": 1})
        for number in _VALUES:
            wiring.token(_entry(key, number), **{f"key:{key}": 1, f"value:{number}": 1})
    for number in _VALUES:
        wiring.logit(number, **{f"found:{number}": 1})
    wiring.head(0, 0, {"query": "points"}, {f"pointer:{x}": f"moved:{x}" for x in _POINTERS}, score=6)
    wiring.head(0, 1, {}, {f"noise:{x}": f"idle:{x}" for x in _NOISE}, score=0)
    wiring.head(1, 0, {f"moved:{x}": f"key:{x}" for x in _POINTERS}, {f"value:{x}": f"found:{x}" for x in _VALUES}, score=5)
    hooks = ("0.resid_pre", "0.attn_out", "0.resid_post", "1.attn_out", "1.resid_post")
    names = Names(wiring.model(task.name), {hook: wiring.dictionary() for hook in hooks}, wiring.names)
    return names.known(task, _lookup_nodes, _lookup_edges, _lookup_indirect)


def _entry(key: str, number: str) -> str:
    """The character of an entry: one of 16 letters."""
    return chr(ord("A") + 4 * _POINTERS.index(key) + _VALUES.index(number))


def _read(entry: str) -> tuple[str, str]:
    key, number = divmod(ord(entry) - ord("A"), 4)
    return _POINTERS[key], _VALUES[number]


def _looked_up(random: Random, *, by_value: bool) -> Pair:
    pointer, other, idle = random.sample(_POINTERS, 3)
    right, wrong = random.sample(_VALUES, 2)
    clean = {key: random.choice(_VALUES) for key in _POINTERS} | {pointer: right}
    clean |= {} if by_value else {other: wrong}
    changed = random.choice([x for x in _VALUES if x != clean[idle]])
    corrupt = clean | {idle: changed} | ({pointer: wrong} if by_value else {})
    noise = random.sample(_NOISE, 2)
    prompt, counterfactual = (
        f"{noise[i]}{pointer if by_value or i == 0 else other}{''.join(_entry(k, v) for k, v in table.items())}="
        for i, table in enumerate((clean, corrupt))
    )
    return Pair(prompt, counterfactual, (right,), (wrong,))


def _lookup_stages(pair: Pair) -> list[list[Named]]:
    """Nodes the answer depends on, hop by hop."""
    assert pair.corrupt is not None
    last, (right,), (wrong,) = len(pair.clean), pair.right, pair.wrong
    found = [[(hook, last, f"found:{x}") for x in (right, wrong)] for hook in ("1.attn_out", "1.resid_post")]
    pointers = pair.clean[1], pair.corrupt[1]
    if pointers[0] != pointers[1]:
        moved = [[(hook, last, f"moved:{x}") for x in pointers] for hook in ("0.attn_out", "0.resid_post")]
        return [[("0.resid_pre", 2, f"pointer:{x}") for x in pointers], *moved, *found]
    where = 3 + _POINTERS.index(pointers[0])
    assert [_read(prompt[where - 1])[1] for prompt in (pair.clean, pair.corrupt)] == [right, wrong]
    return [[(hook, where, f"value:{x}") for x in (right, wrong)] for hook in ("0.resid_pre", "0.resid_post")] + found


def _lookup_nodes(pair: Pair) -> list[Named]:
    return [node for stage in _lookup_stages(pair) for node in stage]


def _lookup_edges(pair: Pair) -> list[NamedEdge]:
    """True edges: between equal names where a value is just carried over; between all where one looks up the other."""
    stages, edges = _lookup_stages(pair), []
    for one, other in pairwise(stages):
        looks_up = one[0][2].startswith("moved") and other[0][2].startswith("found")
        edges += [(a, b) for a in one for b in other if looks_up or a[2][-1] == b[2][-1]]
    return edges + [(node, None) for node in stages[-1]]


def _lookup_indirect(pair: Pair) -> list[NamedEdge]:
    """From each stage to the stages after the next one."""
    stages = _lookup_stages(pair)
    edges: list[NamedEdge] = [
        (a, b) for i, one in enumerate(stages) for later in stages[i + 2 :] for a in one for b in later
    ]
    return edges + [(a, None) for one in stages[:-1] for a in one]
