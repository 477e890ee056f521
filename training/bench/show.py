"""The kernel benchmark's figures as tables to read."""

from collections.abc import Callable
from typing import Any

COLUMNS = ("step", "ms", "quartiles", "rows/s", "× product", "of floor", "peak MiB", "first step, s", "loss")


def show(figures: dict[str, Any], write: Callable[[Any], None]) -> None:
    """Write one table per shape, e.g. with `rich.console.Console().print`."""
    for result in figures["results"]:
        write(table(result))
        for missing in result["missing"]:
            write(f"not measured: {missing}")
        for name, parts in result["breakdown_ms"].items():
            if parts:
                write(f"{name}: " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items()))


def table(result: dict[str, Any]) -> Any:
    """One shape; the last columns say how many times as long as each of our first steps the others take."""
    from rich.table import Table

    shape, share = result["shape"], result["dead_share"]
    title = ", ".join(f"{name} {value:,}" for name, value in shape.items())
    made = Table(title=title + (f", {share:.0%} dead, AuxK" if share else ""))
    rows = sorted(result["contestants"], key=lambda row: row["ms"]["median"])
    firsts = [row for row in result["contestants"] if row["name"].startswith("saescope topk")]
    for column in (*COLUMNS, *(f"÷ {row['name'].removeprefix('saescope ')}" for row in firsts)):
        made.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        ms, peak = row["ms"], result["peak_mib"].get(row["name"])
        made.add_row(
            row["name"], f"{ms['median']:.1f}", f"{ms['q1']:.1f}–{ms['q3']:.1f}", f"{row['rows_per_second']:,.0f}",
            f"{row['times_product']:.2f}", f"{row['share_of_floor']:.0%}", "" if peak is None else f"{peak:,.0f}",
            f"{row['first_step_ms'] / 1e3:.1f}", f"{row['loss']:.5g}",
            *(f"{ms['median'] / first['ms']['median']:.2f}" for first in firsts),
        )
    return made
