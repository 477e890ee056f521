"""Induction: a transformer compiled by tracr from a RASP program (Lindner et al. 2301.05062).

    previous = the token before          next = the token at the position whose previous equals the current token

`compiled_induction.json` holds the weights written by tests/peers/compile_with_tracr.py. Every named direction of the
residual stream is a feature. Attention scores are 100, so attention is practically hard.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from analysis.circuits.selftest.known import Known, Named, NamedEdge, Names
from analysis.circuits.selftest.wiring import D_VOCAB, N_CTX, dictionary, written_model
from analysis.circuits.tasks.metrics import logit_difference
from analysis.circuits.tasks.task import Pair, Task
from training.model.language_model import Model
from training.model.native import byte_tokenizer

WEIGHTS = Path(__file__).with_name("compiled_induction.json")
_LETTERS = "abcd"
_N = 5
"""Letters per prompt; the last one is the query."""
_HOOKS = ("0.resid_pre", "0.attn_out", "0.resid_post", "1.attn_out", "1.resid_post")


def compiled_induction(n_pairs: int = 24, seed: int = 0) -> Known:
    """The model, its dictionaries and its task.

        acbda → c      pairs differ in the query letter (acbdb), in the answer (adbca), or in the earlier position of the
                       query letter (bcada)
    """
    random = Random(seed)
    pairs = [_pair(random, kind=i % 3) for i in range(2 * n_pairs)]
    task = Task("compiled-induction", pairs[:n_pairs], pairs[n_pairs:], logit_difference)
    compiled = json.loads(WEIGHTS.read_text())
    # tracr appends numbers to the names in a program
    labels = [label.split("_")[0] + label[label.find(":") :] if "_" in label and ":" in label else label
              for label in compiled["names"]]
    names = Names(compiled_model(compiled), {hook: dictionary(torch.eye(len(labels)).double()) for hook in _HOOKS}, labels)
    return names.known(task, _nodes, _edges, _indirect)


def compiled_model(compiled: dict[str, Any]) -> Model:
    """The model with the compiled weights, mapped to letters as tokens."""
    d_model, names = len(compiled["names"]), compiled["names"]
    sizes = {
        **{key: compiled[key] for key in ("n_layers", "n_heads", "d_head", "d_mlp")}, "d_model": d_model, "seed": 0,
        "d_vocab": D_VOCAB, "n_ctx": N_CTX, "act_fn": "relu", "normalization_type": None,
    }
    weights = {name: _dense(matrix) for name, matrix in compiled["weights"].items()}
    positions = weights.pop("pos.weight")
    weights["pos.weight"] = torch.cat([positions, torch.zeros(N_CTX - len(positions), d_model).double()])
    tokenizer = byte_tokenizer(D_VOCAB, N_CTX)
    embed, head = torch.zeros(2, D_VOCAB, d_model, dtype=torch.float64)
    for text, row in compiled["tokens"].items():
        token = tokenizer.bos_token_id if text == "BOS" else tokenizer(text, add_special_tokens=False).input_ids[0]
        embed[token] = _dense(row)
        answers = [i for i, name in enumerate(names) if name.startswith("next") and name.endswith(f":{text}")]
        head[token, answers] = 1
    return written_model("compiled-induction", sizes, {**weights, "tok_embed.weight": embed, "head.weight": head})


def _dense(matrix: dict[str, Any]) -> Tensor:
    dense = torch.zeros(matrix["shape"], dtype=torch.float64)
    for *index, value in matrix["entries"]:
        dense[tuple(index)] = value
    return dense


def _pair(random: Random, *, kind: int) -> Pair:
    asks, right, wrong, rest = random.sample(_LETTERS, 4)
    if kind == 0:  # another query letter, which is followed by another answer
        first = f"{asks}{right}{rest}{wrong}"
        return Pair(first + asks, first + rest, (right,), (wrong,))
    begin = random.randrange(2)  # optionally start with another letter
    if kind == 1:
        clean, corrupt = (f"{rest * begin}{asks}{x}{rest * (2 - begin)}{asks}" for x in (right, wrong))
        return Pair(clean, corrupt, (right,), (wrong,))
    return Pair(f"{asks}{right}{rest}{wrong}{asks}", f"{rest}{right}{asks}{wrong}{asks}", (right,), (wrong,))


def _changed(pair: Pair) -> list[int]:
    assert pair.corrupt is not None
    return [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True), 1) if a != b]


def _edges(pair: Pair) -> list[NamedEdge]:
    """True edges, which depend on the kind of pair; nodes are their ends."""
    assert pair.corrupt is not None
    changed, (right,), (wrong,) = _changed(pair), pair.right, pair.wrong
    tail: list[NamedEdge] = [
        (("1.attn_out", _N, f"next:{x}"), ("1.resid_post", _N, f"next:{x}")) for x in (right, wrong)
    ] + [(("1.resid_post", _N, f"next:{x}"), None) for x in (right, wrong)]
    answers = [("1.attn_out", _N, f"next:{x}") for x in (right, wrong)]
    if changed == [_N]:
        asks = [f"tokens:{prompt[-1]}" for prompt in (pair.clean, pair.corrupt)]
        return [(("0.resid_pre", _N, name), ("0.resid_post", _N, name)) for name in asks] + [
            (("0.resid_post", _N, name), answer) for name in asks for answer in answers
        ] + tail
    if len(changed) == 1:
        (at,) = changed
        return [(("0.resid_pre", at, f"tokens:{x}"), ("0.resid_post", at, f"tokens:{x}")) for x in (right, wrong)] + [
            (("0.resid_post", at, f"tokens:{x}"), ("1.attn_out", _N, f"next:{x}")) for x in (right, wrong)
        ] + tail
    asked = pair.clean[-1]
    edges: list[NamedEdge] = []
    for at in changed:
        previous: list[Named] = [(hook, at + 1, f"previous:{asked}") for hook in ("0.attn_out", "0.resid_post")]
        edges += [(("0.resid_pre", at, f"tokens:{asked}"), previous[0]), (previous[0], previous[1])]
        edges += [(previous[1], answer) for answer in answers]
    return edges + tail


def _nodes(pair: Pair) -> set[Named]:
    return {node for edge in _edges(pair) for node in edge if node is not None}


def _indirect(pair: Pair) -> list[NamedEdge]:
    """Ends of all two-edge paths."""
    edges = _edges(pair)
    return [(a, d) for a, b in edges for c, d in edges if b == c]
