"""Bad configs, hooks, models and corpora, at the command: one sentence, exit code 2, nothing left under a final name."""

import json
import re
from pathlib import Path

import pytest

from analysis import runs
from tests.helpers import ended, refusal, run_sae, start_sae, train, tree, write_config


def refused(folder: Path, message: str, *arguments: str) -> None:
    """The training is refused with this message, and no run or cache has appeared."""
    said = refusal(train(folder, *arguments))
    assert re.search(message, said), said
    assert not tree(folder / "runs") and not tree(folder / "cache")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=1", r"quick\.yaml: unknown key 'modle'; did you mean 'model'\?"),
        ("corpus.n_tokn=3", r"unknown key 'corpus\.n_tokn'; did you mean 'n_tokens'\?"),
        ("corpus.sources=[{sorce: python-stdlib}]", r"unknown key 'corpus\.sources\.0\.sorce'; did you mean 'source'\?"),
        ("site.inptu=x", r"unknown key 'site\.inptu'; did you mean 'input'\?"),
        ("sae.kk=3", r"unknown key 'sae\.kk'; did you mean 'k'\?"),
        ("sae.auxk.coeficient=1", r"unknown key 'sae\.auxk\.coeficient'; did you mean 'coefficient'\?"),
        ("sae.init.form=x", r"unknown key 'sae\.init\.form'; did you mean 'from'\?"),
        ("data.zzz=1", r"unknown key 'data\.zzz'; known keys are seed, batch_rows,"),
        ("sae.transform.whitten=true", r"unknown key 'sae\.transform\.whitten'; did you mean 'whiten'\?"),
        ("sae.transform.floor=0", r"sae\.transform\.floor should be greater than 0"),
        ("=3", r"unknown key ''; known keys are name, model,"),
        ("optim.betas=[0.9,1.5]", r"optim\.betas\.1 should be less than 1, found 1\.5"),
        ("sae.k=.inf", r"sae\.k: a count is a whole number, not inf"),
        ("sae.k=.nan", r"sae\.k: a count is a whole number, not nan"),
        ("sae.k=1e400", r"sae\.k: a count is a whole number, not inf"),
        ("sae.hide=1", r"sae\.hide should be less than 1, found 1"),
        ("sae.hide=-0.1", r"sae\.hide should be greater than or equal to 0, found -0\.1"),
        ("sae.hid=0.3", r"unknown key 'sae\.hid'; did you mean 'hide'\?"),
        ("sae.k=true", r"sae\.k: expected a number, found True"),
        ("optim.lr=true", r"optim\.lr: expected a number, found True"),
        ("data.prefetch=true", r"data\.prefetch: expected a number, found True"),
        ("optim.betas=[true, 0.9]", r"optim\.betas: expected a number, found \[True, 0\.9\]"),
        ("sae.auxk.coefficient=yes", r"sae\.auxk\.coefficient should be a valid number"),
        ("optim.lr=.inf", r"optim\.lr should be a finite number"),
        ("sae.grad_clip=.inf", r"sae\.grad_clip should be a finite number"),
        ("optim.warmup=200%", r"optim\.warmup: '200%' is more than the whole budget"),
        ("eval.every=101%", r"eval\.every: '101%' is more than the whole budget"),
        ("optim={warmup: 60%, decay: 50%}", r"optim: warmup = 60% and decay = 50% .*more than the whole budget"),
        ("train.budget=1e400 tokens", r"train\.budget: '1e400 tokens' is too long"),
        ("sae.seed=12345678901234567890", r"sae\.seed should be less than or equal to 9223372036854775807"),
        ("sae.seed=-1", r"sae\.seed should be greater than or equal to 0"),
        ("corpus.seed=12345678901234567890", r"corpus\.seed should be less than or equal to"),
        ("data.seed=12345678901234567890", r"data\.seed should be less than or equal to"),
        ("sae.d_sae=1e30", r"sae\.d_sae: a count is at most 2\^63 − 1"),
        ("sae.d_sae=1e10", r"sae\.d_sae = 10,000,000,000 needs at least 17,920\.0 GB of memory, but [0-9.,]+ GB are"),
        ("corpus.n_tokens=1e15", r"1,000,000,000,000,000 tokens needs at least 5,000,000\.0 GB of memory, but "),
        ("eval.n_rows=1e15", r"tokens needs at least 5,000,000\.0 GB.*lower eval\.n_rows"),
        ("train.budget=5", r"train\.budget: a duration needs its unit: write '5%' of the budget or '5 tokens'"),
        ("optim.warmup=10 min", r"optim\.warmup: '10 min' is not a duration; write"),
        ("train.checkpoint_every=10", r"checkpoint_every: a duration needs its unit.*, or a time such as '10 min'"),
        ("train.checkpoint_every=10 days", r"'10 days' is not a duration; write .*, or a time such as '10 min'"),
        ("train.checkpoint_every=0 s", r"train\.checkpoint_every: '0 s' is not a positive time"),
        ("sae.k_anneal={start: 9, over: 5}", r"sae\.k_anneal\.over: a duration needs its unit"),
        ("train.budget=-1 epochs", r"train\.budget: '-1 epochs' is not a duration; write"),
        ("train.budget=50%", r"train\.budget: 50%.* percentage; use for example '4 epochs'"),
        ("train.budget=10 tokens", r"train\.budget = 10 tokens is less than one batch of data\.batch_rows = 128"),
        ("sae.k=65", r"sae: k = 65 exceeds d_sae = 64"),
        ("sae.k_anneal={start: 100, over: 5%}", r"sae: k_anneal\.start = 100 exceeds d_sae = 64"),
        ("sae.k=0", r"sae\.k should be greater than 0, found 0"),
        ("sae.k=many", r"sae\.k: 'many' is not a count; write for example 4608"),
        ("sae.d_sae=1.5", r"sae\.d_sae: a count is a whole number, not 1\.5"),
        ("sae.variant=topkk", r"quick\.yaml: sae\.variant: no variant called 'topkk'; .*topk, batchtopk"),
        ("sae.variant=[topk]", r"sae: variant .* a name such as topk, not \['topk'\]"),
        ("sae=topk", r"sae should be a mapping of keys, found 'topk'"),
        ("data.block_rows=7", r"data\.block_rows = 7 must divide corpus\.n_ctx = 32"),
        ("data.batch_rows=2000", r"data\.superblock_rows = 1024 is less than data\.batch_rows = 2000"),
        ("data.seed=-1", r"data\.seed should be greater than or equal to 0, found -1"),
        ("train.kernels=fast", r"train\.kernels should be 'auto', 'reference', 'cpu' or 'gpu', found 'fast'"),
        ("train.kernels=gpu", r"the gpu backend runs on CUDA devices.*choose kernels=cpu or kernels=reference"),
        ("train.device=cdua", r"device 'cdua' is not available.*use cpu, cuda, mps or auto"),
        ("model.device=gpu0", r"device 'gpu0' is not available.*use cpu, cuda, mps or auto"),
        ("model.dtype=fp16", r"model\.dtype should be 'auto', 'float32', 'bfloat16' or 'float16', found 'fp16'"),
        ("name=../elsewhere", r"name: '\.\./elsewhere' is not a visible folder under runs/"),
        ("name=a/b/c", r"name: 'a/b/c' is 3 folders deep"),
        ("name=.x", r"name: '\.x' is not a visible folder under runs/"),
        ("name=.x/a", r"is not a visible folder under runs/"),
        ("name=a//b", r"is 3 folders deep"),
        ("name=a/final", r"reserved for the final/ folder of a run called 'a'"),
        (f"name={'x' * 300}", r"has 300 bytes; a folder name can have at most 200"),
        ('name="a\\0b"', r"characters that are not allowed in a folder name"),
        ("sae.k", r"'sae\.k' is not an override; use KEY=VALUE, for example sae\.k=64"),
        ("sae.k=[1", r"sae\.k=\[1, line 1, column 3: not valid YAML"),
        ("model=null", r"only acts:DIR, module:, tensors and corpus\.synthetic work without a language model"),
        ("sweep=5", r"sweep must be a list of overrides such as \{name: a"),
    ],
)
def test_a_wrong_config(tmp_path: Path, override: str, message: str) -> None:
    write_config(tmp_path)
    refused(tmp_path, message, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: [a\n b: c", r"quick\.yaml, line 2, column 3: not valid YAML: expected ',' or '\]'"),
        (b"name: a\nname: b\n", r"line 2, column 1: not valid YAML: found duplicate key \"name\""),
        (b"name: a\n\tsite: b", r"line 2, column 1: not valid YAML"),
        (b"- a\n- b\n", r"a config must be a mapping of sections, found a list; see `sae train --fields`"),
        (b"", r"a config must be a mapping of sections, found nothing"),
        (b"\xff\xfe\x00", r"cannot be read \(.*\); a config must be YAML in UTF-8"),
        (b"site: b\nsae: {variant: topk, d_sae: 64, k: 2}", r"name is missing"),
        (b"name: a\nsite: b\nsae: {d_sae: 64, k: 2}", r"sae\.variant: no variant called None; the variants are"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "quick.yaml").write_bytes(text)
    refused(tmp_path, message)


def test_a_missing_config_names_those_there_are(tmp_path: Path) -> None:
    write_config(tmp_path)
    said = refusal(run_sae(tmp_path, "train", "qick.yaml"))
    assert said == "no config at qick.yaml; . holds quick.yaml."


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "b", "data.seed": 1},
         r"sweep entry 2 changes data\.seed, but members.*only sae, site, optim, train\.dead_window may differ"),
        ({"name": "b", "model": "gemma3-270m"}, r"sweep entry 2 changes model, but"),
        ({"name": "a"}, r"sweep entry 2 is called 'a'; names must be unique"),
        ({"name": "b/c"}, r"sweep entry 2 is called 'b/c'; .*without slashes"),
        ({"name": ""}, r"sweep entry 2 is called ''; .*not empty"),
        ({"name": "b", "sae": {"kk": 1}}, r"sweep member quick/b: unknown key 'sae\.kk'; did you mean 'k'\?"),
        ({"name": "b", "sae.k": 65}, r"sweep member quick/b: sae: k = 65 exceeds d_sae = 64"),
        ({"name": "b", "site": "blocks.0.hook_resid_pots"},
         r"no hook 'blocks\.0\.hook_resid_pots'; the nearest are blocks\.0\.hook_resid_post,"),
    ],
)
def test_a_wrong_sweep(tmp_path: Path, entry: dict, message: str) -> None:
    write_config(tmp_path, sweep=[{"name": "a"}, entry])
    refused(tmp_path, message)


def test_a_sweep_within_a_group(tmp_path: Path) -> None:
    """Its members would be three folders deep."""
    write_config(tmp_path, sweep=[{"name": "a"}])
    refused(tmp_path, r"sweep member group/quick/a: name: .* 3 folders deep", "name=group/quick")


def test_a_run_folder_that_is_a_link(tmp_path: Path) -> None:
    """Out of runs/ it would never be shown; within, it is."""
    write_config(tmp_path)
    for folder in ("elsewhere", "runs/real"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/quick").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path, r"runs/quick is a link to .*elsewhere, outside runs")
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "runs/quick").unlink()
    (tmp_path / "runs/quick").symlink_to("real")
    assert train(tmp_path).code == 0
    assert {run.name for run in runs.find(tmp_path / "runs")} == {"quick", "real"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["site=blocks.0.hook_resid_pots"], r"native:tiny has no hook 'blocks\.0\.hook_resid_pots'; the nearest are "
                                            r"blocks\.0\.hook_resid_post,.*it has 2 blocks"),
        (["site=blocks.9.hook_resid_post"], r"the nearest are blocks\.1\.hook_resid_post,"),
        (["site={input: blocks.0.hook_resid_post, target: blocks.1.hook_mlp_out}", "sae.hide=0.3"],
         r"sae\.hide = 0\.3 masks entries of the input.*target is a different activation"),
        (["site={input: blocks.0.hook_resid_post, target: blocks.1.hook_mlp_uot}"], r"nearest are blocks\.1\.hook_mlp_out"),
        (["data.mask_hooks=[blocks.7.hook_resid_post]"], r"has no hook 'blocks\.7\.hook_resid_post'; the nearest are"),
        (["site=blocks.0.attn.hook_z[9]"], r"hook_z of native:tiny has no head 9: its heads are 0 to 3"),
        (["model.name=smolm2-135m"], r"no model 'smolm2-135m': did you mean smollm2-135m\?.*native:tiny"),
        (["model.name=native:width=3"], r"native:width=3: cannot read 'width=3'; use native:tiny, or"),
        (["model.name=local:nowhere"], r"There is no model in nowhere \(no config\.json\)"),
        (["corpus.n_ctx=512"], r"corpus\.n_ctx = 512, but native:tiny takes at most 128 tokens"),
    ],
)
def test_a_model_or_hook_that_is_not_there(tmp_path: Path, overrides: list[str], message: str) -> None:
    write_config(tmp_path)
    refused(tmp_path, message, *overrides)


def test_without_a_hub_the_offline_models_and_corpora_are_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    model = start_sae(tmp_path, "train", "quick.yaml", "model=hub:nobody/nothing", **offline)
    corpus = start_sae(tmp_path, "train", "quick.yaml", "name=b", "corpus.sources=datasets:nobody/nothing", **offline)
    said = refusal(ended(model))
    assert "hub:nobody/nothing cannot be loaded from the Hugging Face hub (HF_HUB_OFFLINE is set" in said
    assert "models that need no hub: smollm2-135m, gemma3-270m, native:tiny, local:DIR." in said
    said = refusal(ended(corpus))
    assert said.startswith("datasets:nobody/nothing cannot be read (")
    assert "python-stdlib, text:PATH, jsonl:PATH and parquet:PATH need no hub" in said
    assert not tree(tmp_path / "runs") and not tree(tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "overrides", "message"),
    [
        ({"a": "", "b": "\n"}, [], r"text:corpus/\*\.txt contains no text; choose another corpus"),
        ({}, [], r"text:corpus/\*\.txt: no such file \(working directory: /.*check the path"),
        ({"a": "abc " * 99, "b": "xyz " * 99}, [], r"the corpus ends after 792 tokens, which fill 2\d of 128 sequences of "
                                                  r"32, but corpus\.n_tokens = 4,096: set corpus\.n_tokens=\d+, or"),
        ({"a": "abc " * 5000}, [], r"corpus/a\.txt is a single document, and documents are held out whole.*"
                                  r"split the text into paragraphs \('corpus\.sources=\{source: text:corpus/\*\.txt, spl"),
        ({"a": "abc " * 5000, "b": "abc " * 5000}, [],
         r"none of the 128 sequences \(1 document\) is held out, since documents are held out whole; "
         r"increase corpus\.n_tokens, split .* \('corpus\.sources=\{source: text:corpus/\*\.txt, split: blank-line\}'"),
        ({"a": "abc", "b": "xyz"}, ["corpus.n_tokens=40"], r"fewer than two sequences.*increase corpus\.n_tokens to 64"),
        ({"a": "abc\udcff", "b": "xyz"}, [], r"corpus/a\.txt, line 1: not UTF-8 .*convert the file to UTF-8"),
        ({"a": "abc"}, ["corpus.sources=pyton-stdlib"], r"corpus\.sources\.0: 'pyton-stdlib' is not a source, did you mean "
                                                        r"python-stdlib\?; use python-stdlib, .*text:PATH"),
        ({"a": "abc"}, ["corpus.sources=[]"], r"corpus\.sources: no source is given; for example, use python-stdlib"),
    ],
)
def test_an_empty_or_too_small_corpus(
    tmp_path: Path, files: dict[str, str], overrides: list[str], message: str
) -> None:
    (tmp_path / "corpus").mkdir()
    for name, text in files.items():
        (tmp_path / "corpus" / f"{name}.txt").write_text(text, errors="surrogateescape")
    write_config(tmp_path)
    refused(tmp_path, message, *overrides)


def test_chat_roles_without_a_chat_template(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "and then?"}, {"role": "assistant", "content": "then nothing"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    source = {"source": "jsonl:chat.jsonl", "field": "messages", "chat_roles": ["assistant"]}
    write_config(tmp_path, corpus={"sources": [source]})
    refused(tmp_path, r"chat_roles is set, but this model's tokenizer has no chat template; use an instruction-tuned")


def test_kernels_of_the_environment_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESCOPE_KERNELS", "fast")
    write_config(tmp_path, train={"kernels": "auto"})
    refused(tmp_path, r"kernels: no backend called 'fast'; choose reference, cpu, gpu or auto")


def test_a_name_that_was_refused_stays_free(tmp_path: Path) -> None:
    write_config(tmp_path)
    refused(tmp_path, "has no hook", "site=blocks.9.hook_resid_post")
    assert train(tmp_path).code == 0


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "runs/quick/final").mkdir(parents=True)
    (tmp_path / "runs/quick/final/thesis.txt").write_text("x")
    for more in ([], ["--resume"]):
        assert "runs/quick is not a run" in refusal(train(tmp_path, *more))
    assert list(tree(tmp_path / "runs")) == ["quick/final/thesis.txt"] and not tree(tmp_path / "cache")


def test_an_unknown_command_and_wrong_arguments(tmp_path: Path) -> None:
    outcome = run_sae(tmp_path, "trian")
    assert outcome.code == 2 and outcome.err.startswith("sae: unknown command 'trian'; ") and "train" in outcome.err
    for argv in (["train"], ["train", "--resme"], ["cache"]):
        outcome = run_sae(tmp_path, *argv)
        assert outcome.code == 2 and re.search(rf"^sae {argv[0]}: error: ", outcome.err, re.MULTILINE), outcome
    for what in ("verify", "rm"):
        assert refusal(run_sae(tmp_path, "cache", what, "c"), "cache") == "no cache 'c'; caches in cache: none."
    assert "no config at c.yaml" in refusal(run_sae(tmp_path, "cache", "make", "c.yaml"), "cache")
