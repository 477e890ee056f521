"""Experiments that reproduce papers' claims: one small file each, and this table of them.

An experiment has a config in `configs/reproduce/` (seeds, settings and their fields), a module with `run(job)`, which
returns the rows of one seed and setting, and result tables of the same name. A module may also have
`finish(jobs, rows, out)`, which draws pictures from all jobs' results, and `prepare(jobs)`, which creates what jobs share
before several processes start.
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
