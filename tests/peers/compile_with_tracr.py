"""Compile a RASP program with tracr and write its weights as JSON; run by an environment that has `tracr-pypi`.

    python tests/peers/compile_with_tracr.py analysis/circuits/selftest/compiled_induction.json

The program gives, at each position, the token that followed an earlier occurrence of the token there (induction).
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tracr.compiler import compiling
from tracr.rasp import rasp

LETTERS, N_LETTERS = "abcd", 5


def program() -> rasp.SOp:
    """`next` in RASP."""
    before = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - 1)
    previous = rasp.Aggregate(before, rasp.tokens, default=None).named("previous")
    same = rasp.Select(previous, rasp.tokens, rasp.Comparison.EQ)
    return rasp.Aggregate(same, rasp.tokens, default=None).named("next")


def entries(matrix: Any) -> dict[str, Any]:
    """Shape, and [row, column, value] of what is not zero."""
    matrix = np.asarray(matrix, dtype=np.float64)
    rows = [[*map(int, index), float(matrix[tuple(index)])] for index in np.argwhere(matrix)]
    return {"shape": list(matrix.shape), "entries": rows}


def main(path: Path) -> None:
    """Write the weights in the names of a native TransformerLens model."""
    model = compiling.compile_rasp_to_model(
        program(), vocab=set(LETTERS), max_seq_len=N_LETTERS + 1, compiler_bos="BOS", causal=True
    )
    params, layers = model.params, range(model.model_config.num_layers)
    weights = {"pos.weight": params["pos_embed"]["embeddings"]}
    for i in layers:
        parts = {
            "attn.q": "attn/query", "attn.k": "attn/key", "attn.v": "attn/value", "attn.o": "attn/linear",
            "mlp.fc_in": "mlp/linear_1", "mlp.fc_out": "mlp/linear_2",
        }
        for ours, theirs in parts.items():
            weights[f"layers.{i}.{ours}.weight"] = params[f"transformer/layer_{i}/{theirs}"]["w"].T
            weights[f"layers.{i}.{ours}.bias"] = params[f"transformer/layer_{i}/{theirs}"]["b"]
    ids = model.input_encoder.encoding_map
    tokens = {text: params["token_embed"]["embeddings"][ids[text]] for text in ("BOS", *LETTERS)}
    answers = {"".join(p): model.apply(["BOS", *p]).decoded[-1] for p in ("acbda", "abdca", "dabcd", "bcadb")}
    config = model.model_config
    path.write_text(json.dumps({
        "made_with": "tracr-pypi 1.0.0", "names": [str(label) for label in model.residual_labels],
        "n_layers": config.num_layers, "n_heads": config.num_heads, "d_head": config.key_size,
        "d_mlp": config.mlp_hidden_size, "answers": answers,
        "tokens": {text: entries(row) for text, row in tokens.items()},
        "weights": {name: entries(matrix) for name, matrix in weights.items()},
    }, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
