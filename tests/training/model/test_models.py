import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.errors import SaescopeError
from training.model.language_model import Model
from training.model.load import load_model
from training.model.packaged import packaged_dir, quiet_transformers
from training.model.weights import OFFLINE_MODELS, from_packaged

HOOK = "blocks.9.hook_resid_post"
TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def smol() -> Model:
    return load_model("smollm2-135m")


@pytest.fixture(scope="module")
def bare():
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(packaged_dir("smollm2-135m"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load_model("native:tiny")


def sentence(model: Model) -> torch.Tensor:
    ids = model.tokenizer(TEXT, add_special_tokens=False).input_ids
    return torch.tensor([[model.bos_id, *ids], [model.bos_id, *reversed(ids)]])


def tiny_tokens(n_seqs: int = 3, n_ctx: int = 20) -> torch.Tensor:
    return torch.randint(3, 259, (n_seqs, n_ctx), generator=torch.Generator().manual_seed(0))


def test_activations_and_logits_are_those_of_the_hugging_face_forward(smol, bare):
    tokens = sentence(smol)
    with torch.no_grad():
        expected = bare(tokens, output_hidden_states=True, use_cache=False)
    assert torch.equal(smol.activations(tokens, [HOOK])[HOOK], expected.hidden_states[10])
    assert torch.equal(smol.logits(tokens), expected.logits)
    assert smol.tokenizer.decode(smol.logits(tokens)[0, -1].argmax()) == " Mary"


def test_hooks_agree_with_the_bridge(smol):
    """The map from hook name to module, checked against transformer_lens' own cache on real text."""
    tokens = sentence(smol)
    names = [n for n in smol.hooks() if n.startswith("blocks.3.")]
    assert {"blocks.3.hook_resid_mid", "blocks.3.attn.hook_z", "blocks.3.mlp.hook_post"} < set(names)
    with torch.no_grad():
        _, cache = smol.bridge.run_with_cache(tokens)
    ours = smol.activations(tokens, names)
    for name in names:
        torch.testing.assert_close(ours[name], cache[name].flatten(2), rtol=1e-3, atol=1e-3)


def test_shapes_and_widths(smol):
    shapes = smol.hooks()
    assert shapes["blocks.9.hook_resid_post"] == (576,)
    assert shapes["blocks.3.attn.hook_z"] == (9, 64)
    assert shapes["blocks.3.mlp.hook_post"] == (1536,)
    for short in ("hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mlp_out"):
        assert shapes[f"blocks.29.{short}"] == (576,)
    assert smol.d_hook("blocks.3.attn.hook_z") == 576
    assert smol.d_hook("blocks.3.attn.hook_z[2]") == 64
    assert (smol.d_vocab, smol.n_layers, smol.n_ctx_max) == (49152, 30, 8192)


def test_residual_stream_adds_up(smol):
    names = [f"blocks.3.hook_{n}" for n in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")]
    pre, attn, mid, mlp, post = smol.activations(sentence(smol), names).values()
    assert torch.equal(pre + attn, mid) and torch.equal(mid + mlp, post)


def test_one_head_is_a_part_of_all_heads(smol):
    z, z2 = "blocks.3.attn.hook_z", "blocks.3.attn.hook_z[2]"
    acts = smol.activations(sentence(smol), [z, z2])
    assert torch.equal(acts[z][..., 128:192], acts[z2])


def test_early_stop_gives_what_a_full_run_gives_and_runs_no_further(tiny):
    tokens, first, last = tiny_tokens(), "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
    tiny.hooks()
    ran = []
    (block,) = [module for path, module in tiny._network.named_modules() if path.endswith("layers.1")]
    watch = block.register_forward_pre_hook(lambda *_: ran.append("block 1"))
    early = tiny.activations(tokens, [first])
    n_early = len(ran)
    full = tiny.activations(tokens, [last, first])
    watch.remove()
    assert (n_early, len(ran)) == (0, 1)
    assert torch.equal(early[first], full[first]) and list(full) == [last, first]


def test_activations_of_a_sequence_do_not_depend_on_the_batch():
    model = load_model("smollm2-135m", dtype="bfloat16")
    tokens = torch.randint(20, 49152, (5, 64), generator=torch.Generator().manual_seed(0))
    hook = "blocks.1.hook_resid_post"
    whole = model.activations(tokens, [hook], n_seqs_per_forward=4)[hook]
    assert whole.dtype == torch.bfloat16 and whole.shape == (5, 64, 576)
    for chosen in ([4], [2, 0], [3, 4, 1]):
        part = model.activations(tokens[chosen], [hook], n_seqs_per_forward=4)[hook]
        assert torch.equal(part, whole[chosen])


def test_bfloat16_is_near_float32(smol):
    low = load_model("smollm2-135m", dtype="bfloat16").activations(sentence(smol), [HOOK])[HOOK].float()[:, 1:]
    high = smol.activations(sentence(smol), [HOOK])[HOOK][:, 1:]
    assert (low - high).pow(2).sum() / (high - high.mean((0, 1))).pow(2).sum() < 5e-3


@pytest.mark.parametrize("hook", ["blocks.9.hook_resid_post", "blocks.9.hook_resid_mid", "blocks.3.attn.hook_z[2]"])
def test_splicing_the_identity_changes_no_bit_and_zeros_change_much(smol, hook):
    tokens = sentence(smol)
    clean = smol.logits(tokens)
    with smol.splice(hook, lambda acts: acts.clone()):
        assert torch.equal(smol.logits(tokens), clean)
    with smol.splice(hook, torch.zeros_like):
        assert (smol.logits(tokens) - clean).abs().max() > 0.1
    assert torch.equal(smol.logits(tokens), clean)


def test_splicing_one_head_equals_zeroing_its_columns_of_the_output_projection(smol, bare):
    tokens = sentence(smol)
    ablated = copy.deepcopy(bare)
    ablated.model.layers[3].self_attn.o_proj.weight.data[:, 128:192] = 0
    with torch.no_grad():
        expected = ablated(tokens, use_cache=False).logits
    with smol.splice("blocks.3.attn.hook_z[2]", torch.zeros_like):
        torch.testing.assert_close(smol.logits(tokens), expected, rtol=1e-3, atol=1e-3)


def test_splicing_the_middle_of_a_block_replaces_the_stream_too(smol):
    """With the stream zeroed between attention and MLP, nothing of the text is left: all positions come out alike."""
    mid, post = "blocks.9.hook_resid_mid", "blocks.9.hook_resid_post"
    replacement = torch.linspace(-1, 1, 576).expand(2, sentence(smol).shape[1], 576)
    with smol.splice(mid, lambda acts: replacement):
        acts = smol.activations(sentence(smol), [mid, post])
    assert torch.equal(acts[mid], replacement)
    torch.testing.assert_close(acts[post], acts[post][:1, :1].expand_as(acts[post]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["smol", "tiny"])
def test_extending_a_text_bit_by_bit_gives_the_logits_of_the_whole(which, smol, tiny):
    model = {"smol": smol, "tiny": tiny}[which]
    tokens = sentence(model) if which == "smol" else tiny_tokens(n_seqs=1)
    whole, past = model.logits(tokens), None
    for start, stop in ((0, 4), (4, 5), (5, tokens.shape[1])):
        logits, past = model.extend(tokens[:, start:stop], past)
        torch.testing.assert_close(logits, whole[:, stop - 1], atol=2e-4, rtol=1e-4)
    with pytest.raises(SaescopeError, match="longer than"):
        model.extend(torch.zeros(1, model.n_ctx_max, dtype=torch.long), past)


def test_an_exception_in_a_splice_leaves_the_model_clean(tiny):
    tokens = tiny_tokens()
    clean = tiny.logits(tokens)

    def fail(acts):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), tiny.splice("blocks.0.hook_resid_mid", fail):
        tiny.logits(tokens)
    assert torch.equal(tiny.logits(tokens), clean)
    tiny.activations(tokens, ["blocks.0.hook_mlp_out"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny._network.modules())


def test_nested_splices_and_gradients_through_a_splice(tiny):
    tokens, shift = tiny_tokens(), torch.ones(32, requires_grad=True)
    inner, outer = "blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"
    with tiny.splice(inner, lambda a: a + shift), tiny.splice(outer, lambda a: a * 2):
        tiny.logits(tokens).square().mean().backward()
    assert shift.grad is not None and shift.grad.abs().sum() > 0
    assert not tiny.logits(tokens).requires_grad


@pytest.mark.parametrize("order", [1, -1])
def test_a_splice_behind_a_block_sees_what_one_in_its_middle_did(tiny, order):
    tokens, seen = tiny_tokens(), []
    pre, mlp = (tiny.activations(tokens, [h])[h] for h in ("blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out"))

    def look(acts):
        seen.append(acts)
        return acts

    splices = [("blocks.0.hook_resid_mid", torch.zeros_like), ("blocks.0.hook_resid_post", look)][::order]
    with tiny.splice(*splices[0]), tiny.splice(*splices[1]):
        tiny.logits(tokens)
        alone = tiny.activations(tokens, ["blocks.0.hook_mlp_out"])["blocks.0.hook_mlp_out"]
    torch.testing.assert_close(seen[0], alone)  # the stream was zeroed, so that the MLP's output is all there is
    assert not torch.allclose(alone, mlp) and not torch.allclose(alone, pre)


def test_models_load_in_fp64():
    model = load_model("native:tiny", dtype="float64")
    tokens = tiny_tokens()
    assert model.dtype == model.logits(tokens).dtype == torch.float64 and model.identity["dtype"] == "float64"
    torch.testing.assert_close(model.logits(tokens).float(), load_model("native:tiny").logits(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hook", ["blocks.9.hook_resid_post", "blocks.9.hook_resid_mid", "blocks.3.attn.hook_z[2]"])
def test_replayed_blocks_run_once_and_change_nothing(smol, hook):
    tokens, runs = sentence(smol), []
    attention = smol.location("blocks.0.hook_resid_post")[0].module.self_attn
    handle = attention.register_forward_pre_hook(lambda *_: runs.append("block 0"))
    with torch.no_grad(), smol.splice(hook, lambda a: a * 0.5):
        spliced = smol.logits(tokens)
    with torch.no_grad():
        other = tokens[:, 1:].repeat(3, 1)
        clean, clean_other, clean_flipped = (smol.logits(t) for t in (tokens, other, tokens.flip(1)))
        runs.clear()
        with smol.replayed([hook]):
            assert torch.equal(smol.logits(tokens), clean)
            with smol.splice(hook, lambda a: a * 0.5):
                assert torch.equal(smol.logits(tokens), spliced)
            assert len(runs) == 1
            # other tokens, of another number or the same, are not taken for the first
            assert torch.equal(smol.logits(other), clean_other) and len(runs) == 2
            assert torch.equal(smol.logits(tokens.flip(1)), clean_flipped) and len(runs) == 3
            assert torch.equal(smol.logits(tokens), clean) and len(runs) == 3
        assert torch.equal(smol.logits(tokens), clean) and len(runs) == 4
    handle.remove()


def test_unknown_hook_names_the_nearest(smol):
    with pytest.raises(SaescopeError, match=r"blocks\.9\.hook_resid_pst.*nearest are blocks\.9\.hook_resid_post"):
        smol.d_hook("blocks.9.hook_resid_pst")
    with pytest.raises(SaescopeError, match="30 blocks"):
        smol.activations(sentence(smol), ["blocks.30.hook_resid_post"])
    with pytest.raises(SaescopeError, match="heads are 0 to 8"):
        smol.d_hook("blocks.3.attn.hook_z[9]")
    with pytest.raises(SaescopeError, match="no head axis"):
        smol.d_hook("blocks.3.hook_mlp_out[0]")


def test_bos_policy_and_special_tokens(smol, tiny):
    assert smol.prepend_bos and smol.tokenizer.decode([smol.bos_id]) == "<|im_start|>"
    assert smol.special_ids == frozenset(range(17))
    assert tiny.prepend_bos and tiny.special_ids == frozenset({0, 1, 2})


def test_identity_names_the_weights(smol, tiny):
    assert len(smol.identity["sha256"]) == 64 and smol.identity["dtype"] == "float32"
    assert tiny.identity["seed"] == 0 and tiny.identity != load_model("native:seed=1").identity


def test_native_is_a_function_of_its_spec_and_leaves_the_global_generator_alone(tiny):
    before = torch.get_rng_state()
    again = load_model("native:tiny")
    assert torch.equal(torch.get_rng_state(), before)
    tokens = tiny_tokens()
    assert torch.equal(again.logits(tokens), tiny.logits(tokens))
    assert not torch.equal(load_model("native:seed=1").logits(tokens), tiny.logits(tokens))
    assert load_model("native:n_layers=3,d_model=64").hooks()["blocks.2.attn.hook_z"] == (4, 16)


def test_native_tokenizer_is_one_token_per_byte_and_round_trips(tiny):
    text = "naïve λ\n\tx = 1"
    ids = tiny.tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode()) and max(ids) < tiny.d_vocab
    assert tiny.tokenizer.decode(ids) == text


def test_native_logits_equal_the_bridge(tiny):
    tokens = tiny_tokens()
    with torch.no_grad():
        torch.testing.assert_close(tiny.logits(tokens), tiny.bridge(tokens))


def test_local_directory_is_the_same_model(smol):
    local = load_model(f"local:{packaged_dir('smollm2-135m')}")
    assert local.identity["sha256"] == smol.identity["sha256"]
    assert torch.equal(local.logits(sentence(smol)), smol.logits(sentence(smol)))


def save_random(directory: Path, config) -> None:
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    load_model("native:tiny").tokenizer.save_pretrained(directory)


def test_other_architectures_keep_their_hugging_face_numerics(tmp_path):
    """GPT-2 has transposed and fused weights and no rotary; Gemma 2 caps scores, which fused attention leaves out."""
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 512}
    gemma = Gemma2Config(**sizes, num_key_value_heads=2, head_dim=8, intermediate_size=64, attn_logit_softcapping=0.05)
    save_random(tmp_path / "gpt2", GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=512, n_positions=64))
    save_random(tmp_path / "gemma2", gemma)
    tokens = tiny_tokens()
    for name in ("gpt2", "gemma2"):
        model = load_model(f"local:{tmp_path / name}")
        with torch.no_grad(), quiet_transformers():
            eager = AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager")(tokens).logits
        torch.testing.assert_close(model.logits(tokens), eager, rtol=1e-5, atol=1e-6)
        assert model.hooks()["blocks.1.attn.hook_z"] == (4, 8)
        clean = model.logits(tokens)
        for hook in model.hooks():
            with model.splice(hook, torch.clone):
                assert torch.equal(model.logits(tokens), clean)


def test_a_model_in_the_hubs_local_cache_loads_without_the_hub(tmp_path):
    from transformers import GPT2Config

    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub" / "models--org--small"
    save_random(
        cache / "snapshots" / commit, GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=512, n_positions=64)
    )
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    code = (
        "from training.model.load import load_model\n"
        "model = load_model('hub:org/small')\n"
        "print(model.identity, model.d_hook('blocks.1.hook_resid_post'))"
    )
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == f"{{'name': 'hub:org/small', 'revision': '{commit}', 'dtype': 'float32'}} 32"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "did you mean smollm2-135m"),
        ("gpt2", "hub:org/name"),
        ("hub:", "hub:org/name"),
        ("native:d_modle=3", "native:d_modle=3: cannot read 'd_modle=3'"),
        ("native:d_model=30", "multiple of n_heads"),
        ("native:d_vocab=100", "d_vocab must be at least 259"),
    ],
)
def test_unknown_models(name, message):
    with pytest.raises(SaescopeError, match=message):
        load_model(name)


def test_a_missing_local_directory_and_one_without_weights(tmp_path: Path):
    with pytest.raises(SaescopeError, match=r"no model in .*nowhere"):
        load_model(f"local:{tmp_path}/nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SaescopeError, match="transformers cannot load"):
        load_model(f"local:{tmp_path}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama as transformers saves it."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("llama") / "whole"
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    save_random(folder, LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=512, max_position_embeddings=64))
    return folder


def altered_config(**values: Any) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(fields))

    return alter


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: ((folder / name).write_text(text), None)[1]


def altered_weights(alter: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(alter(load_file(path)), path, metadata={"format": "pt"})

    return rewrite


def sharded_in_two_of_which_one_is_gone(folder: Path) -> None:
    names = sorted(load_file(folder / "model.safetensors"))
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (folder / "model.safetensors").rename(folder / files[0])
    weight_map = {name: files[i > 3] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


DAMAGES = {
    "weights cut short": lambda folder: os.truncate(folder / "model.safetensors", 20_000),
    "weights empty": written("model.safetensors", ""),
    "weights a pointer": written("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:abc\n"),
    "weights gone": without("model.safetensors"),
    "a shard gone": sharded_in_two_of_which_one_is_gone,
    "an index of nothing": lambda folder: (
        sharded_in_two_of_which_one_is_gone(folder), written("model.safetensors.index.json", "{}")(folder)
    ),
    "no pickle": lambda folder: (without("model.safetensors")(folder), written("pytorch_model.bin", "no")(folder)),
    "a tensor gone": altered_weights(lambda all_: {k: v for k, v in all_.items() if k != "model.norm.weight"}),
    "MLPs gone": altered_weights(lambda all_: {k: v for k, v in all_.items() if "mlp" not in k}),
    "a tensor turned": altered_weights(lambda all_: {k: v.t().contiguous() if "gate" in k else v for k, v in all_.items()}),
    "other names": altered_weights(lambda all_: {f"base.{k}": v for k, v in all_.items()}),
    "more layers": altered_config(num_hidden_layers=4),
    "fewer layers": altered_config(num_hidden_layers=1),
    "no layers": altered_config(num_hidden_layers=0),
    "wider": altered_config(hidden_size=64),
    "other heads": altered_config(num_key_value_heads=4),
    "heads that do not divide": altered_config(num_attention_heads=3),
    "more tokens": altered_config(vocab_size=600),
    "layers in words": altered_config(num_hidden_layers="two"),
    "another architecture": altered_config(model_type="gpt2", n_layer=2, n_head=4, n_embd=32),
    "no causal model": altered_config(model_type="t5"),
    "nobody's architecture": altered_config(model_type="nonsense"),
    "code of its own": altered_config(model_type="custom", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
    "quantised": altered_config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "config cut short": written("config.json", "{"),
    "config a list": written("config.json", "[]"),
    "config gone": without("config.json"),
    "tokenizer gone": without("tokenizer.json", "tokenizer_config.json"),
    "tokenizer cut short": written("tokenizer.json", "{"),
    "tokenizer's config a list": written("tokenizer_config.json", "[]"),
    "nothing at all": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_folder_is_refused_in_one_sentence(saved: Path, tmp_path: Path, damage: str):
    folder = shutil.copytree(saved, tmp_path / "m")
    DAMAGES[damage](folder)
    with pytest.raises(SaescopeError) as caught:
        load_model(f"local:{folder}")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tensor_that_does_not_fit_is_named(saved: Path, tmp_path: Path):
    for damage, facts in {
        "a tensor gone": ["model.norm.weight"], "wider": ["[512, 32]", "[512, 64]"],
        "fewer layers": ["model.layers", " 1 "],
    }.items():
        folder = shutil.copytree(saved, tmp_path / damage)
        DAMAGES[damage](folder)
        with pytest.raises(SaescopeError) as caught:
            load_model(f"local:{folder}")
        assert all(fact in str(caught.value) for fact in facts), caught.value


def test_a_tokenizer_whose_files_are_gone_or_of_another_model(saved: Path, tmp_path: Path, smol: Model):
    """GPT-2's class makes an empty tokenizer of no files at all."""
    from transformers import GPT2Config

    save_random(tmp_path / "gpt2", GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=512, n_positions=64))
    without("tokenizer.json", "tokenizer_config.json")(tmp_path / "gpt2")
    with pytest.raises(SaescopeError, match="tokenizer"):
        load_model(f"local:{tmp_path / 'gpt2'}")
    smol.tokenizer.save_pretrained(shutil.copytree(saved, tmp_path / "other"))
    model = load_model(f"local:{tmp_path / 'other'}")
    tokens = torch.tensor([model.tokenizer(TEXT).input_ids])
    for ask in (model.logits, model.extend, lambda t: model.activations(t, ["blocks.0.hook_resid_post"])):
        with pytest.raises(SaescopeError, match=f"{int(tokens.max())}.*512"):
            ask(tokens)


def test_a_damaged_packaged_model_says_how_to_make_it_anew(saved: Path, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "m")
    assert from_packaged(folder, torch.float32)[0].dtype == torch.float32
    DAMAGES["weights cut short"](folder)
    with pytest.raises(SaescopeError, match=f"{folder}.*remove"):
        from_packaged(folder, torch.float32)


def test_without_a_hub_the_offline_models_are_named(monkeypatch, tmp_path):
    """A port that nothing listens on stands for the missing hub; the request itself is real."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SaescopeError) as caught:
        load_model("hub:nobody/nothing-of-this-name")
    assert all(name in str(caught.value) for name in OFFLINE_MODELS)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_is_bf16_only_where_it_is_fast(monkeypatch, fast, dtype):
    monkeypatch.setattr("training.model.devices.bf16_is_fast", lambda: fast)
    model = load_model("native:tiny", dtype="auto")
    assert (model.dtype, model.identity["dtype"]) == (dtype, str(dtype).removeprefix("torch."))


def test_unknown_dtype_and_device():
    with pytest.raises(SaescopeError, match="float8"):
        load_model("native:tiny", dtype="float8")
    with pytest.raises(SaescopeError, match="cpuu"):
        load_model("native:tiny", device="cpuu")


def test_too_long_a_sequence_is_refused(tiny):
    with pytest.raises(SaescopeError, match="129 tokens"):
        tiny.logits(tiny_tokens(1, 129))
