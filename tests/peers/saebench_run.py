"""SAEBench's own functions on files that `saebench_check` wrote; runs in its environment and imports nothing of ours.

    python saebench_run.py FOLDER

FOLDER holds model/ (a transformers GPT-2), tokens.safetensors and saes/NAME/ (SAELens folders); NAME.json and
NAME.safetensors are written beside: what SAEBench 0.6.0 finds of each SAE, and per token. Then hand.json: what it makes of
cases small enough for a sheet of paper.
"""

import json
import sys
import types
from pathlib import Path

import sae_bench.evals.core.main as core
import sae_bench.evals.mdl.main as mdl
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import GPT2LMHeadModel

HOOK, LAYER = "blocks.0.hook_resid_post", 0


class Store:
    """As much of an activations store as these functions ask for: the same tokens at every call."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens, self.context_size, self.store_batch_size_prompts = tokens, tokens.shape[1], len(tokens)

    def get_batch_tokens(self, n: int) -> torch.Tensor:
        """All of them."""
        return self.tokens


class Wrapped:
    """An SAE with the names under which SAEBench asks for the site."""

    def __init__(self, sae: object, d_sae: int) -> None:
        self.sae, self.device, self.hook_z_reshaping_mode = sae, torch.device("cpu"), False
        self.cfg = types.SimpleNamespace(hook_name=HOOK, hook_layer=LAYER, hook_head_index=None, d_sae=d_sae)
        self.encode, self.decode = sae.encode, sae.decode


def model_of(folder: Path) -> HookedTransformer:
    """The transformers model as TransformerLens' old class has it, no weight processed."""
    theirs = GPT2LMHeadModel.from_pretrained(folder)
    c = theirs.config
    cfg = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, d_head=c.n_embd // c.n_head, n_heads=c.n_head,
        d_mlp=4 * c.n_embd, act_fn="gelu_new", normalization_type="LN", d_vocab=c.vocab_size, eps=c.layer_norm_epsilon,
        original_architecture="GPT2LMHeadModel", device="cpu",
    )
    model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        convert_gpt2_weights(theirs, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False)
    return model.eval()


def measured(sae: Wrapped, model: HookedTransformer, tokens: torch.Tensor) -> tuple[dict, dict]:
    """Core's figures and what single tokens cost."""
    store = Store(tokens)
    costs = core.get_recons_loss(sae, model, tokens, store, compute_kl=True, compute_ce_loss=True)
    whole = core.get_downstream_reconstruction_metrics(
        sae, model, store, compute_kl=True, compute_ce_loss=True, n_batches=1, eval_batch_size_prompts=len(tokens))
    figures, features = core.get_sparsity_and_variance_metrics(
        sae, model, store, n_batches=1, compute_l2_norms=True, compute_sparsity_metrics=True,
        compute_variance_metrics=True, compute_featurewise_density_statistics=True,
        eval_batch_size_prompts=len(tokens), model_kwargs={})
    return {**whole, **figures}, {"density": torch.tensor(features["feature_density"]), **costs}


def by_hand() -> dict:
    """Two rows and their reconstruction through core; one feature through mdl."""
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    x_hat = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    codes = torch.tensor([[[1.0, 0.0], [0.0, -1.0]]])
    model = types.SimpleNamespace(run_with_cache=lambda tokens, **_: (None, {HOOK: x.repeat(len(tokens), 1, 1)}))
    out = {}
    for name, n in (("once", 1), ("twice", 2)):
        many = [tensor.repeat(n, 1, 1) for tensor in (codes, x_hat)]
        sae = types.SimpleNamespace(encode=lambda _, many=many: many[0], decode=lambda _, many=many: many[1])
        figures, features = core.get_sparsity_and_variance_metrics(
            Wrapped(sae, 2), model, Store(torch.zeros(n, 2, dtype=torch.long)), n_batches=1, compute_l2_norms=False,
            compute_sparsity_metrics=True, compute_variance_metrics=True, compute_featurewise_density_statistics=True,
            eval_batch_size_prompts=n, model_kwargs={})
        out[name] = {**figures, "density": features["feature_density"]}
    out["mdl"] = description_length()
    return out


def description_length() -> float:
    """Of one feature, active in half of the rows, at 10 or 60 equally often: 1.5 bits a row."""
    values = torch.tensor([0.0, 0.0, 10.0, 60.0] * 8)[:, None]
    mdl.config = types.SimpleNamespace(sae_batch_size=1)
    # it asks for a GPU
    torch.Tensor.cuda = lambda self, *_, **__: self
    store = types.SimpleNamespace(get_filtered_llm_batch=lambda: values)
    sae = types.SimpleNamespace(encode=lambda x: x)
    bins = mdl.build_bins(torch.zeros(1), torch.full((1,), 100.0), num_bins=8)
    # the encoder's output is squeezed: two columns keep it a matrix
    sae.encode = lambda x: torch.cat([values, torch.zeros_like(values)], dim=1)
    bins = bins + bins
    return mdl.calculate_dl(2, bins, "cpu", store, sae, 1)


def main(folder: Path) -> None:
    """All SAEs of a folder, then the cases made by hand."""
    tokens, model = load_file(folder / "tokens.safetensors")["tokens"].long(), model_of(folder / "model")
    for place in sorted((folder / "saes").iterdir()):
        sae = SAE.load_from_disk(place, device="cpu")
        figures, single = measured(Wrapped(sae, sae.cfg.d_sae), model, tokens)
        (folder / f"{place.name}.json").write_text(json.dumps(figures))
        tensors = {name: tensor.contiguous().float() for name, tensor in single.items()}
        save_file(tensors, folder / f"{place.name}.safetensors")
    (folder / "hand.json").write_text(json.dumps(by_hand()))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(Path(sys.argv[1]))
