"""Show benchmark results as tables."""

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
    """The table of one shape; the last columns are times relative to our TopK steps."""
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


PARTS = ("step", "model", "read", "write", "to_device", "from_device")


def e2e_table(result: dict[str, Any]) -> Any:
    """The table of one size of the end-to-end benchmark, in tokens per second."""
    from rich.table import Table

    sizes = {name: result[name] for name in ("d_in", "d_sae", "k", "batch_rows")}
    title = f"{result['size']}: " + ", ".join(f"{name} {value:,}" for name, value in sizes.items())
    made = Table(title=f"{title}, {result['kernels']} kernels, tokens/s" if "kernels" in result else f"{title}, tokens/s")
    for column in ("", "ours", *PARTS, "parts allow", "share"):
        made.add_column(column.replace("_", " "), justify="right" if column else "left")
    for leg, found in result["legs"].items():
        parts = found["parts_tokens_per_s"]
        made.add_row(
            leg, f"{found['tokens_per_s']:,.0f}", *(f"{parts[part]:,.0f}" if part in parts else "" for part in PARTS),
            f"{found['allowed_tokens_per_s']:,.0f}", f"{found['share']:.2f}",
        )
    return made
