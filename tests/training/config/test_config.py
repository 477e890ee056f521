from pathlib import Path
from typing import Any

import pytest

from sae.errors import SaescopeError
from sae.units import Duration
from training.config import reading as configs
from training.config.synthetic import SyntheticConfig
from training.schedule import Clock

ROOT = Path(__file__).parents[3]
BASE = {"name": "r", "site": "blocks.0.hook_resid_post", "sae": {"variant": "topk", "d_sae": 64, "k": 4}}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_in_the_repository_is_valid_and_survives_its_own_yaml(path: Path, tmp_path: Path) -> None:
    for member in configs.read(path):
        (tmp_path / "again.yaml").write_text(member.yaml())
        assert configs.read(tmp_path / "again.yaml") == [member]


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs").glob("circuits/*saes.yaml")]),
    ids=lambda p: p.stem,
)
def test_no_config_in_the_repository_fills_a_disk(path: Path) -> None:
    """A cache takes n_tokens · d · 2 bytes a hook. Sites are of SmolLM2-135M, d 576, where a config writes one."""
    members = configs.read(path)
    first, hooks = members[0], {hook for member in members for hook in member.site.hooks}
    if first.cache.mode == "disk" and first.corpus.needs_model:
        assert first.model is not None and first.model.name == "smollm2-135m"
        assert first.corpus.n_tokens * len(hooks) * 576 * 2 < 5e9


@pytest.mark.parametrize(("d_sae", "lr"), [(256, 2e-3), (2304, 2e-3), (4608, 1.4e-3), (9216, 1e-3), (65_536, 3.8e-4)])
@pytest.mark.parametrize("given", [{}, {"lr": "auto"}, {"lr": None}])
def test_the_default_learning_rate_falls_with_the_width_and_is_written_down(d_sae: int, lr: float, given: dict) -> None:
    (member,) = configs.resolve({**BASE, "sae": {"variant": "topk", "k": 4, "d_sae": d_sae}, "optim": given})
    assert member.optim.lr == member.plain()["optim"]["lr"] == lr
    assert configs.resolve(member.plain()) == [member]


def test_a_learning_rate_that_is_given_stays_and_each_member_of_a_sweep_has_its_own() -> None:
    entries = [{"sae.d_sae": 9216}, {"sae.d_sae": 36_864}, {"sae.d_sae": 9216, "optim.lr": 3e-4}]
    assert [member.optim.lr for member in configs.resolve({**BASE, "sweep": entries})] == [1e-3, 5e-4, 3e-4]


def test_the_default_dead_window_is_a_tenth_of_a_training_and_at_most_10m_tokens() -> None:
    (member,) = configs.resolve(BASE)
    budgets = (1_000_000, 100_000_000, 500_000_000)
    windows = [Clock(budget, 4096, 10**9).shortest(member.train.dead_window) for budget in budgets]
    assert windows == [100_000, 10_000_000, 10_000_000]
    assert member.plain()["train"]["dead_window"] == ["10%", "10000000 tokens"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("300k tokens", "300000 tokens"), (["5%"], "5%"), (["2 epochs", "3 steps"], ["2 epochs", "3 steps"])],
)
def test_a_dead_window_is_a_duration_or_the_shortest_of_several(given: object, kept: object) -> None:
    (member,) = configs.resolve({**BASE, "train": {"dead_window": given}})
    assert member.plain()["train"]["dead_window"] == kept
    assert configs.resolve(member.plain()) == [member]


@pytest.mark.parametrize("bad", [[], "soon", [["5%"]], 3])
def test_what_is_no_dead_window_is_refused(bad: object) -> None:
    with pytest.raises(SaescopeError, match=r"train\.dead_window"):
        configs.resolve({**BASE, "train": {"dead_window": bad}})


def test_yaml_1_2_and_counts(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "name: off\nsite: blocks.0.hook_resid_post\nsae: {variant: topk, d_sae: 1e3, k: 8}\n"
        "optim: {lr: 1e-4}\ncorpus: {n_tokens: 2_000_000}\ntrain: {budget: 2M tokens}\n"
    )
    (member,) = configs.read(tmp_path / "c.yaml", ["optim.warmup=10 steps", "sae.k=16"])
    assert (member.name, member.sae.d_sae, member.optim.lr) == ("off", 1000, 1e-4)
    assert member.corpus.n_tokens == 2_000_000
    assert member.train.budget == Duration(2e6, "tokens")
    assert member.optim.warmup == Duration(10, "steps") and member.sae.k == 16  # type: ignore[attr-defined]


def test_configs_are_frozen() -> None:
    (member,) = configs.resolve(BASE)
    with pytest.raises(ValueError, match="frozen"):
        member.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sae.kk=3", r"unknown key 'sae\.kk'; did you mean 'k'\?"),
        ("optim.learning_rate=1", r"unknown key 'optim\.learning_rate'"),
        ("optm.lr=1", r"unknown key 'optm'; did you mean 'optim'\?"),
        ("corpus.n_token=5", r"did you mean 'n_tokens'\?"),
        ("sae.auxk.coeficient=0", r"unknown key 'sae\.auxk\.coeficient'; did you mean 'coefficient'\?"),
        ("train.budget=5", r"train\.budget: a duration needs its unit: write '5%' of the budget or '5 tokens'"),
        ("sae.k=65", r"k = 65 exceeds d_sae = 64"),
        ("sae.variant=topkk", r"no variant called 'topkk'; .*topk"),
        ("sae.k", r"KEY=VALUE"),
        ("sae.skip=true", r"sae\.skip is a linear path from input to target"),
        ("site={input: a, target: a, update: both}", r"update.* needs a target"),
        ("sae.init.subspace=0", r"sae\.init\.subspace should be greater than 0"),
        ("sae.init.explained=1.5", r"sae\.init\.explained should be less than or equal to 1"),
        ("sae={variant: matryoshka, prefixes: [8, 4, 64]}", r"lengths must be ascending and at least 1"),
        ("sae={variant: matryoshka, prefixes: [8, 32]}", r"prefixes end at 32, but the last must be d_sae = 64"),
        ("sae={variant: relu, k: null, sparsity: {target_l0: 65}}", r"unknown key 'sae\.k'"),
        ("data.block_rows=7", r"data\.block_rows = 7 must divide corpus\.n_ctx = 256"),
    ],
)
def test_a_wrong_config_is_answered_with_what_to_write(override: str, message: str) -> None:
    with pytest.raises(SaescopeError, match=message):
        configs.resolve(BASE, [override])


def test_a_target_l0_beyond_the_dictionary_is_refused() -> None:
    for variant in ("relu", "gated", "jumprelu", "mdl"):
        sae = {"variant": variant, "d_sae": 64, "sparsity": {"target_l0": 65}}
        with pytest.raises(SaescopeError, match=r"target_l0 = 65 exceeds d_sae = 64; a row has at most d_sae"):
            configs.resolve(BASE | {"sae": sae})


@pytest.mark.parametrize(("update", "cross"), [(False, True), (True, True), ("both", False)])
def test_a_skip_path_needs_a_target_of_its_own(update: bool | str, cross: bool) -> None:
    site = {"input": "blocks.1.hook_resid_pre", "target": "blocks.1.hook_resid_post", "update": update}
    (member,) = configs.resolve(BASE | {"site": site})
    assert member.site.cross == cross and member.site.hooks == (site["input"], site["target"])
    if cross:
        assert configs.resolve(BASE | {"site": site}, ["sae.skip=true"])[0].sae.skip
    else:
        with pytest.raises(SaescopeError, match="copy the input"):
            configs.resolve(BASE | {"site": site}, ["sae.skip=true"])


def test_a_sweep_shares_its_stream_and_records_the_union_of_its_hooks() -> None:
    sweep = {**BASE, "sweep": [{"name": "a", "sae.k": 2}, {"name": "b", "site": "blocks.1.hook_resid_post"}]}
    a, b = configs.resolve(sweep)
    assert (a.name, b.name) == ("r/a", "r/b")
    assert a.data == b.data
    assert a.data.mask_hooks == ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.mark.parametrize("entry", [{"data.seed": 1}, {"corpus": {"n_ctx": 8}}, {"model": "gemma3-270m"}])
def test_members_of_a_sweep_may_not_change_the_stream(entry: dict) -> None:
    with pytest.raises(SaescopeError, match="share one stream"):
        configs.resolve({**BASE, "sweep": [entry]})


def test_fields_lists_every_variants_keys_with_their_meaning() -> None:
    from training.config.field_reference import fields

    text = fields()
    assert "variant: batchtopk" in text and "threshold_decay: 0.99" in text
    assert "budget: 1 epochs" in text and "Rows per training step." in text
    assert "checkpoint_every: 10 min" in text


@pytest.mark.parametrize("corpus", ["acts:own", "tensors", {"synthetic": {"d": 8}}])
def test_rows_that_need_no_model_claim_none(corpus: Any) -> None:
    fields = {"name": "a", "site": "acts", "corpus": corpus, "sae": {"variant": "topk", "d_sae": 8, "k": 2}}
    (config,) = configs.resolve(fields)
    assert config.model is None and config.plain()["model"] is None
    (text,) = configs.resolve({**fields, "corpus": "python-stdlib"})
    assert text.model is not None and text.model.name == "smollm2-135m"
    with pytest.raises(SaescopeError, match=r"synthetic uses no model"):
        configs.resolve({**fields, "corpus": {"synthetic": {"d": 8}}, "model": "native:tiny"})


def test_synthetic_features_are_counted_without_making_them() -> None:
    made = SyntheticConfig(roots=4, branching=(3, 2))
    assert made.n_features == len(made.parents()) == 4 * (1 + 3 + 6)
    with pytest.raises(ValueError, match="at most 1,000,000"):
        SyntheticConfig(roots=10**6, branching=(10**6, 10**6))
