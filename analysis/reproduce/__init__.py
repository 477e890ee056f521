"""What papers claim, tried: one small file an experiment, and this literal table of them.

An experiment is three things of one name: a config in `configs/reproduce/` (seeds, settings and their fields), a module
with `run(job)`, which gives the rows of one seed and setting, and the tables beside the config that it leaves. A module
may have `finish(jobs, rows, out)` too, which draws pictures from what all jobs left, and `prepare(jobs)`, which makes
what jobs share before several processes begin.
"""

EXPERIMENTS: dict[str, str] = {
    "active-subspace": "analysis.reproduce.active_subspace",
    "l0-targets": "analysis.reproduce.l0_targets",
    "learning-rate": "analysis.reproduce.learning_rate",
    "dead-window": "analysis.reproduce.dead_window",
    "icfl": "analysis.reproduce.icfl",
    "variants": "analysis.reproduce.variants",
    "evaluations": "analysis.reproduce.evaluations",
    "matryoshka-tree": "analysis.reproduce.matryoshka_tree",
    "abstopk-bipolar": "analysis.reproduce.abstopk_bipolar",
    "synthetic": "analysis.reproduce.synthetic",
    "masking": "analysis.reproduce.masking",
    "refine": "analysis.reproduce.refine",
    "shift": "analysis.reproduce.shift",
    "mdl-lm": "analysis.reproduce.mdl_lm",
    "mdl-digits": "analysis.reproduce.mdl_digits",
    "k-sparse": "analysis.reproduce.k_sparse",
}
"""Name on the command line → module."""
