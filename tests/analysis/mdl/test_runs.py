"""Selection by description length: runs on disk against measuring each SAE by itself on the rows of its own evaluation."""

import csv
import io
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.corpus_rows import open_rows
from analysis.mdl.description_length import Encoded, description_length
from analysis.mdl.runs import curve, least_description
from analysis.render.figures import rate
from analysis.trained import open_trained
from sae import store
from sae.cli import main
from sae.errors import SaescopeError
from tests.sae.toy import Toy, train
from training.config.reading import resolve

N = 3200


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that trainings of three SAEs of one site and of one of another leave, as far as they are read here."""
    root = tmp_path_factory.mktemp("selection")
    toy = Toy()
    for site in ("here", "there"):
        (root / "acts" / site).mkdir(parents=True)
        np.save(root / "acts" / site / "rows.npy", toy.rows(N).numpy())
    for name, site, variant, sae in (
        ("sweep/topk-2", "here", "topk", {"k": 2}), ("sweep/topk-6", "here", "topk", {"k": 6}),
        ("mdl", "here", "mdl", {"start_l0": 6, "sparsity": {"coefficient": 30}}),
        ("elsewhere", "there", "topk", {"k": 2}),
    ):
        fields: dict[str, Any] = {
            "name": name, "model": None, "site": site, "sae": {"variant": variant, "d_sae": 32, **sae},
            "corpus": {"sources": f"acts:{root / 'acts'}", "n_ctx": 32, "held_out": 0.2}, "data": {"n_calib": 32},
        }
        trained = train(toy, variant, n_steps=60, d_sae=32, lr=1e-2, **sae)
        store.save(trained, root / "runs" / name / "final", provenance={"site": {"input": site}})
        (root / "runs" / name / "config.yaml").write_text(resolve(fields)[0].yaml())
    return root / "runs"


def test_runs_come_by_their_bits_at_one_distortion(runs: Path) -> None:
    folders = [runs / name for name in ("sweep/topk-2", "sweep/topk-6", "mdl")]
    selection = least_description([runs / "sweep", runs / "mdl", folders[0]], epsilon=0.01, n_rows=400)
    level, found = selection.fve, selection.runs
    assert {one.run for one in found} == set(folders) and len(found) == 3
    assert selection.least is found[0]
    rows, target = open_rows(open_trained(folders[0])).held_out(400)
    assert len(rows) == 13 * 32, "400, in whole sequences"
    assert torch.equal(rows, target)
    assert level == min(one.fve for one in found) - 0.01
    for one in found:
        own = description_length(store.load(one.run), rows, fve=level)
        assert one.length == own and one.fve == own.fve and own.fve_quantised >= level
        assert one.own == description_length(store.load(one.run), rows, epsilon=0.01)
        assert (one.variant, one.d_sae) == (one.run.name.split("-")[0], 32)
    bits = [one.length.bits for one in found if one.length]
    assert len(bits) == 3 and bits == sorted(bits)


def test_a_run_that_falls_short_comes_last_without_bits(runs: Path) -> None:
    folders = [runs / "sweep/topk-2", runs / "sweep/topk-6"]
    own = {one.run.name: one.fve for one in least_description(folders).runs}
    assert own["topk-2"] < own["topk-6"]
    between = (own["topk-2"] + own["topk-6"]) / 2
    found = least_description(folders, fve=between)
    assert found.fve == between
    assert [(one.run.name, one.length is None) for one in found.runs] == [("topk-6", False), ("topk-2", True)]


def test_what_cannot_be_compared_is_refused(runs: Path, tmp_path: Path) -> None:
    topk = runs / "sweep/topk-2"
    with pytest.raises(SaescopeError, match=r"no run to compare; give run folders"):
        least_description([])
    with pytest.raises(SaescopeError, match=r"nowhere: there is no run here \(no config\.yaml\)"):
        least_description([runs / "mdl", runs / "nowhere"])
    with pytest.raises(SaescopeError, match=r"elsewhere: its site differs from that of .*topk-2"):
        least_description([topk, runs / "elsewhere"])
    with pytest.raises(SaescopeError, match=r"no SAE of the sweep reaches FVE 0\.9999"):
        least_description([topk], fve=0.9999)
    with pytest.raises(SaescopeError, match=r"epsilon = 0 is not a share"):
        least_description([topk], epsilon=0.0)
    with pytest.raises(SaescopeError, match=r"0 rows leave nothing to measure"):
        least_description([topk], n_rows=0)
    (tmp_path / "begun").mkdir()
    shutil.copy(topk / "config.yaml", tmp_path / "begun")
    with pytest.raises(SaescopeError, match=r"begun: this run has no final/ yet"):
        least_description([tmp_path / "begun"])


def test_a_curve_runs_from_coarse_to_fine(runs: Path) -> None:
    rows, _ = open_rows(open_trained(runs / "mdl")).held_out(400)
    encoded = Encoded(store.load(runs / "mdl"), rows)
    points = curve(encoded, 6)
    assert len(points) == 6
    assert all(a.step > b.step and a.bits < b.bits for a, b in itertools.pairwise(points))
    assert points[0].fve_quantised == pytest.approx(encoded.fve / 2, rel=0.1)
    assert points[-1].fve_quantised == pytest.approx(encoded.fve, rel=2e-3)
    assert all(point == encoded.at(point.step) for point in points)


def test_the_command_marks_the_least(
    runs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    assert main(["mdl", "runs/sweep", "runs/mdl", "--rows", "400"]) == 0
    out = capsys.readouterr().out
    found = least_description(["runs/sweep", "runs/mdl"], n_rows=400)
    assert f"shortest at FVE {found.fve:.3f}: {found.least.run}" in out
    (marked,) = [line for line in out.splitlines() if "←" in line]
    assert found.least.length is not None and f"← {found.least.length.bits:.1f}" in marked
    assert f"{found.least.own.bits:.1f}" in marked and "bits at" in out


def test_one_run_is_compared_with_nothing(runs: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["mdl", str(runs / "mdl"), "--rows", "400"]) == 0
    out = capsys.readouterr().out
    assert "bits per row, 416 held-out rows" in out and "shortest at" not in out and "←" not in out


def test_the_command_as_json_and_csv(runs: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    argv = ["mdl", str(runs / "sweep"), "--rows", "400", "--fve", "0.2"]
    found = least_description([runs / "sweep"], 0.2, n_rows=400)
    plot = tmp_path / "bits.html"
    assert main([*argv, "--json", "--plot", str(plot)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["fve"], told["least"]) == (0.2, str(found.least.run))
    for one, mine in zip(told["runs"], found.runs, strict=True):
        assert mine.length is not None
        assert (one["own"]["bits"], one["at_fve"]["bits"]) == (mine.own.bits, mine.length.bits)
        assert len(one["curve"]) == 14
    assert "topk-6" in plot.read_text() and "plotly" in plot.read_text()
    assert main([*argv, "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["run"] for line in lines] == [str(one.run) for one in found.runs]
    assert [line["least"] for line in lines] == ["1", "0"]
    assert float(lines[0]["bits"]) == pytest.approx(found.least.own.support + found.least.own.values)


def test_the_command_says_what_is_wrong(
    runs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["mdl", str(runs / "mdl"), str(runs / "elsewhere")]) == 2
    assert "its site differs from that of" in capsys.readouterr().err
    assert main(["mdl", str(runs / "mdl"), "--plot", "bits.pdf"]) == 2
    assert "bits.pdf: cannot draw a .pdf; use .html, .png, .svg." in capsys.readouterr().err

    def refuse(*args: object, **fields: object) -> bytes:
        raise ValueError("the kaleido package is required\nand more")

    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", refuse)
    with pytest.raises(SaescopeError, match=r"a\.png: Plotly cannot draw .* \(the kaleido package is required\)"):
        rate.write(tmp_path / "a.png", rate.figure({"a": [(0.5, 3.0)]}))


def test_a_figure_has_a_curve_a_run() -> None:
    drawn = rate.figure({"a": [(0.5, 3.0), (0.6, 4.0)], "b": [(0.7, 9.0)]}, 0.55)
    assert [(list(t.x), list(t.y), t.name) for t in drawn.data] == [([0.5, 0.6], [3.0, 4.0], "a"), ([0.7], [9.0], "b")]
    assert drawn.layout.shapes[0].x0 == 0.55
    assert not rate.figure({"a": [(0.5, math.inf)]}).layout.shapes
