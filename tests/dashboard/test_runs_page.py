"""The page Runs, without a browser, over every state a folder of runs can be in."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analysis.render.tables import runs as run_table
from dashboard.views.runs import site_text
from tests.analysis.run_folders import line, write_run
from tests.dashboard.pages import html, visit


def table(app: AppTest) -> list[dict[str, str]]:
    """The cells of the table as they are read, by the columns' names."""
    body = html(app).split("<tbody>")[1].split("</tbody>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("</tr>")[:-1]]
    return [dict(zip(run_table.COLUMNS, (re.sub(r"<[^>]*>", "", cell) for cell in row), strict=True)) for row in rows]


def n_charts(app: AppTest) -> int:
    return len(app.get("plotly_chart"))


def test_no_runs(root: Path) -> None:
    app = visit()
    assert app.code[0].value == "sae train configs/quickstart.yaml"
    assert app.code[1].value == str(root)
    assert "<tbody>" not in html(app)


def test_one_finished_run(root: Path) -> None:
    write_run(root, "done")
    app = visit()
    row = table(app)[0]
    assert (row["run"], row["status"], row["through"]) == ("done", "✓ finished", "100%")
    assert (row["variant"], row["d_sae"], row["tokens"]) == ("topk", "64", "5,120")
    assert (row["fve"], row["fve_interval"], row["ce"]) == ("0.750", "0.740 … 0.760", "0.900")
    assert n_charts(app) == 4
    assert "sae.d_sae" in html(app)


def test_a_run_in_progress_with_a_half_written_line(root: Path) -> None:
    folder = write_run(root, "going", n_lines=25, finished=False, silent_s=-300)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(26))[:40])
    app = visit()
    row = table(app)[0]
    assert (row["status"], row["through"], row["tokens"]) == ("● training", "25%", "6,400")
    assert "1 training" in app.text[0].value
    assert not app.warning


def test_a_run_that_grows(root: Path) -> None:
    folder = write_run(root, "going", n_lines=25, finished=False, silent_s=-300)
    app = visit()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(26)) + "\n")
    app.run()
    assert table(app)[0]["tokens"] == "6,656"


def test_a_run_without_a_line(root: Path) -> None:
    write_run(root, "new", n_lines=0, finished=False)
    app = visit()
    assert table(app)[0]["status"] == "● training"
    assert "No metrics yet" in app.info[0].value
    assert n_charts(app) == 0


def test_a_page_follows_its_runs_unless_told_to_stand_still(root: Path) -> None:
    write_run(root, "going", finished=False, silent_s=-300)
    assert visit().toggle(key="follow").value is True
    assert visit(follow="false").toggle(key="follow").value is False
    assert "_seen" in visit().session_state
    assert "_seen" not in visit(follow="false").session_state


def test_an_interrupted_run(root: Path) -> None:
    write_run(root, "old", finished=False, silent_s=5000)
    assert table(visit())[0]["status"] == "■ interrupted"


def test_a_sweep_shows_what_differs(root: Path) -> None:
    write_run(root, "sweep/k4")
    write_run(root, "sweep/k8", sae__k=8)
    app = visit()
    assert {row["run"] for row in table(app)} == {"sweep/k4", "sweep/k8"}
    assert "sae.k" in html(app) and "sae.d_sae" not in html(app)
    assert "sae.d_sae" in html(visit(diff="false"))


def test_a_broken_run_is_told_beside_the_whole_one(root: Path) -> None:
    write_run(root, "whole")
    (write_run(root, "broken") / "config.yaml").write_text("name: [")
    app = visit()
    assert len(table(app)) == 2
    assert "config\\.yaml cannot be read" in app.warning[0].value


ODD = ["null", "true", "[]", '""', '"x"', "{}", "[1]", "[1, 2, 3]", '["a", "b"]', "[null, 1]", '{"a": [1]}', "NaN",
       "-Infinity", "1e999", "-1", "1" + 400 * "0", "0", "1e308"]
"""JSON values that stand where numbers, intervals and objects do."""


def test_a_summary_of_any_content_is_survived(root: Path) -> None:
    kinds = [
        "{odd}", '{{"heldout": {odd}}}', '{{"n_rows_trained": {odd}}}', '{{"imported": {odd}}}',
        '{{"heldout": {{"fve": {odd}, "l0": {odd}, "fve_interval": {odd}, "ce_recovered_mean": {odd}}}}}',
        '{{"heldout": {{"fve": 0.5, "fve_interval": {odd}, "ce_recovered_mean": 1, "ce_recovered_mean_interval": {odd}}}}}',
    ]
    whole = write_run(root, "whole", n_lines=1)
    summaries = {f"{i}/{j}": kind.format(odd=odd).encode() for i, kind in enumerate(kinds) for j, odd in enumerate(ODD)}
    no_json = [b"", b"{", b"\xff", b"[" * 100_000, b'{"n_rows_trained": ' + b"1" * 5000 + b"}", b"\x00"]
    for name, text in (summaries | {f"no-json/{i}": text for i, text in enumerate(no_json)}).items():
        (shutil.copytree(whole, root / name) / "summary.json").write_bytes(text)
    (shutil.copytree(whole, root / "lines") / "metrics.jsonl").write_text("".join(
        f'{{"step": {odd}, "rows": {odd}, "fve": {odd}, "tokens_per_s": {odd}, "heldout/fve": 1, '
        f'"heldout/fve_interval": {odd}}}\n' for odd in ODD
    ))
    names = ["whole", "lines", "no-json/4", "1/0", "4/11", "5/8"]
    app = visit(order="fve_interval", runs=names)
    assert len(table(app)) == 2 + len(summaries) + len(no_json)
    assert next(row for row in table(app) if row["run"] == "whole")["fve"] == "0.750"
    assert {row["fve"] for row in table(app) if row["run"].startswith("1/")} == {"–"}


def test_a_config_of_any_content_is_survived(root: Path) -> None:
    whole = write_run(root, "whole", n_lines=1)
    for i, odd in enumerate(ODD):
        value = json.loads(odd)
        (shutil.copytree(whole, root / str(i)) / "config.yaml").write_text(
            json.dumps({"sae": {"variant": value, "d_sae": value}, "site": value, "data": value}))
    for sort in ("variant", "d_sae", "site"):
        assert len(table(visit(order=sort))) == 1 + len(ODD)


def test_a_hostile_name_stays_text(root: Path) -> None:
    write_run(root, "<script>alert(1)<")
    assert "<script" not in html(visit())


def test_the_table_is_sorted_by_the_url(root: Path) -> None:
    for name, k in (("a", 4), ("c", 16), ("b", 8)):
        write_run(root, name, sae__d_sae=64 * k, silent_s=k)
    write_run(root, "new", n_lines=0, finished=False, sae__d_sae=32)

    def names(**query: str) -> list[str]:
        return [row["run"] for row in table(visit(**query))]

    assert names() == ["new", "a", "b", "c"]
    assert names(order="d_sae") == ["c", "b", "a", "new"] and names(order="d_sae", turned="true") == ["new", "a", "b", "c"]
    assert names(order="run") == ["a", "b", "c", "new"] and names(order="run", turned="true") == ["new", "c", "b", "a"]
    assert names(order="fve")[-1] == names(order="fve", turned="true")[-1] == "new"  # without a value
    assert names(order="<b>") == names()
    page = html(visit(order="d_sae"))
    assert 'href="./?order=d_sae&amp;turned=true"' in page and 'aria-sort="descending"' in page
    assert 'href="./?page=features&amp;run=c"' in page


def test_the_url_holds_the_state(root: Path) -> None:
    for name in ("a", "b", "c"):
        write_run(root, name)
    app = visit(runs=["c", "a"], metrics=["lr"], smooth="0.5", logx="true", logy="true")
    assert app.multiselect(key="runs").value == ["c", "a"]
    assert app.multiselect(key="metrics").value == ["lr"]
    assert app.slider(key="smooth").value == 0.5
    assert app.toggle(key="logx").value and app.toggle(key="logy").value
    assert n_charts(app) == 1


def test_a_choice_goes_into_the_url_and_the_default_out_of_it(root: Path) -> None:
    write_run(root, "a")
    write_run(root, "b")
    app = visit()
    app.multiselect(key="runs").set_value(["b"])
    app.slider(key="smooth").set_value(0.9)
    app.toggle(key="diff").set_value(False)
    app.run()
    assert dict(app.query_params) == {"runs": "b", "smooth": "0.9", "diff": "false"}
    app.multiselect(key="runs").set_value([])
    app.slider(key="smooth").set_value(0.0)
    app.run()
    assert dict(app.query_params) == {"diff": "false"}


def test_values_that_do_not_fit_are_the_defaults(root: Path) -> None:
    write_run(root, "a")
    app = visit(smooth="7", logx="maybe", metrics="no such")
    assert (app.slider(key="smooth").value, app.toggle(key="logx").value) == (0.0, False)
    assert app.multiselect(key="metrics").value == []


def test_a_url_with_a_run_that_is_gone_or_elsewhere(root: Path) -> None:
    write_run(root, "a")
    write_run(root.parent / "outside", "secret")
    app = visit(runs=["gone", "../outside/secret"])
    assert app.multiselect(key="runs").value == []
    assert [row["run"] for row in table(app)] == ["a"]
    assert "secret" not in re.sub(r"<[^>]*>", "", html(app))  # it stands in links, which keep the address


def test_downloads_hold_every_number(root: Path) -> None:
    from analysis import runs
    from dashboard.views.runs import as_csv, as_json

    write_run(root, "a")
    found = runs.find(root)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    fve = [float(row["value"]) for row in rows if row["metric"] == "fve"]
    assert fve == runs.series(found[0].lines, "fve")[1]
    whole = json.loads(as_json(found))[0]
    assert (whole["name"], whole["summary"]["heldout"]["fve"], len(whole["metrics"])) == ("a", 0.75, 22)


@pytest.mark.parametrize(("site", "told"), [
    ({"input": "a"}, "a"), ({"input": "a", "target": None, "update": False}, "a"),
    ({"input": "a", "target": "b", "update": False}, "a → b"), ({"input": "a", "target": "b", "update": True}, "a → b − a"),
    ({"input": "a", "target": "b", "update": "both"}, "b − a"), ({}, ""),
])
def test_a_site_is_told_as_what_is_read_and_reconstructed(site: dict[str, Any], told: str) -> None:
    assert site_text(site) == told
