"""The benchmark of node effects: what it reports, and that its line is the line."""

import pytest

from analysis.circuits.bench import bench_circuits, line, show
from sae.errors import SaescopeError
from training.display import Display

TINY = "native:n_layers=3"


def test_the_line_through_times_that_are_linear_is_found_and_a_quadratic_one_is_told() -> None:
    cells = [(n, steps) for n in (1, 2, 4, 8) for steps in (1, 2, 5, 10)]
    fit = line(cells, [0.01 + 0.002 * n + 0.003 * n * steps for n, steps in cells])
    found = [fit["fixed_ms"], fit["per_site_ms"], fit["per_site_and_step_ms"], fit["r_squared"], fit["largest_deviation"]]
    assert found == pytest.approx([10, 2, 3, 1, 0], abs=1e-6)
    assert line(cells, [0.01 + 0.003 * n * n * steps for n, steps in cells])["largest_deviation"] > 0.3


def test_every_cell_is_timed() -> None:
    figures = bench_circuits(model=TINY, n_sites=(1, 3), n_steps=(1, 2), n_pairs=2, d_sae=16, k=4, repeats=1)
    assert {(cell["n_sites"], cell["n_steps"]) for cell in figures["cells"]} == {(1, 1), (1, 2), (3, 1), (3, 2)}
    assert all(cell["ms_per_pair"] > 0 for cell in figures["cells"]) and figures["peak_gb"] > 0.1
    show(figures, Display(quiet=True))


def test_more_sites_than_there_are() -> None:
    with pytest.raises(SaescopeError, match=r"10 sites.* 9\b"):
        bench_circuits(model=TINY, n_sites=(10,), n_steps=(1,), n_pairs=2, d_sae=16, k=4, repeats=1)
