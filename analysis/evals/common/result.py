"""Result of an evaluation, and its file runs/NAME/evals/EVAL.json.

The file follows SAEBench's schema (`eval_type_id`, `eval_config`, `eval_result_metrics {category: {metric: scalar}}`, ...),
with additional keys: each metric with its interval, unit, direction and formula (`metrics`); the same for every control
(`controls`) and for attainable values (`references`); missing controls (`lacking`); and each unit's jackknife pseudo-value
(`pseudo`), for paired comparison of results on the same rows. Per-feature results have their own table
(`common.features`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64

from sae.errors import SaescopeError
from sae.io.files import code_version, read_json, write_json

FORMAT, FORMAT_VERSION = "saescope-eval", 1
FOLDER = "evals"
Direction = Literal["higher", "lower", "none"]
"""Which values are better; `none` for descriptive metrics."""


@dataclass(frozen=True)
class Units:
    """The independent units behind a metric's interval: documents, groups of them, words, templates, seeds."""

    kind: str
    """Singular noun, such as `document`."""
    id: Int64[np.ndarray, " n_units"]
    """Ids of the units; comparable between results with the same inputs."""
    n_rows: Float[np.ndarray, " n_units"]
    """Rows, tokens or examples per unit."""


@dataclass(frozen=True)
class Metric:
    """One metric: its value, 95 % interval, and each unit's pseudo-value."""

    value: float | None
    """None if undefined."""
    unit: str
    """`share`, `nats per token`, `bits per row`, `features per row`, `cosine`, `features`..."""
    direction: Direction
    formula: str
    """Short description of what was computed, unique to the definition."""
    n: int
    """Number of units, or of examples if there is no interval."""
    low: float | None = None
    high: float | None = None
    pseudo: Float[np.ndarray, " n_units"] | None = None
    """Jackknife pseudo-values of the units; NaN for units without rows. See `intervals`."""
    of: str = "rows"
    """Key into the result's `units`."""

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        pseudo = None if self.pseudo is None else [_finite(float(v)) for v in self.pseudo]
        return {
            "value": _finite(self.value), "low": _finite(self.low), "high": _finite(self.high), "unit": self.unit,
            "direction": self.direction, "formula": self.formula, "n": self.n, "of": self.of, "pseudo": pseudo,
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Metric":
        """Read from JSON values."""
        pseudo = plain["pseudo"]
        values = None if pseudo is None else np.array([math.nan if v is None else v for v in pseudo], dtype=np.float64)
        return cls(**{**plain, "pseudo": values})


@dataclass(frozen=True)
class PerFeature:
    """One value per feature, stored in a table next to the result (`common.features`)."""

    values: Float[np.ndarray, " d_sae"] | tuple[str | None, ...]
    """NaN or None where not measured."""
    title: str
    """Column header, one or two words."""
    unit: str
    direction: Direction
    formula: str


Metrics = Mapping[str, Mapping[str, Metric]]
"""Metrics by group and name."""


@dataclass(frozen=True)
class Found:
    """Result of one evaluation for one coder."""

    metrics: Metrics
    units: Mapping[str, Units] = field(default_factory=dict)
    """Units that the metrics refer to; the same for every coder."""
    details: Sequence[Mapping[str, Any]] = ()
    """Flat records of plain values: one per letter, task, stratum, bin..."""
    features: Mapping[str, PerFeature] = field(default_factory=dict)
    """Per-feature results by column name. For the run itself only, and not in the JSON."""
    notes: tuple[str, ...] = ()
    """What couldn't be measured and why, one sentence each."""


@dataclass(frozen=True)
class EvalResult:
    """One evaluation of one run, with its controls."""

    eval: str
    title: str
    version: int
    """Version of the evaluation's definition."""
    run: str
    """Name of the run."""
    inputs: Mapping[str, Any]
    """Everything that determines the results: equal inputs give equal results. `rows` identifies the rows."""
    settings: Mapping[str, Any]
    sae: Mapping[str, Any]
    """The SAE's config, and the seeds of its training."""
    found: Found
    controls: Mapping[str, Found] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    """Missing controls."""
    references: Mapping[str, Metrics] = field(default_factory=dict)
    """Attainable values by name, such as a supervised skyline."""

    def metric(self, group: str, name: str) -> Metric | None:
        """A metric of the run itself."""
        return self.found.metrics.get(group, {}).get(name)

    def plain(self) -> dict[str, Any]:
        """As written to the file."""
        return {
            "format": FORMAT, "format_version": FORMAT_VERSION, "code_version": code_version(),
            # SAEBench's names
            "eval_type_id": self.eval, "eval_config": dict(self.settings), "eval_id": self.inputs["id"],
            "datetime_epoch_millis": 0,
            "eval_result_metrics": {
                group: {name: _finite(metric.value) for name, metric in metrics.items()}
                for group, metrics in self.found.metrics.items()
            },
            "eval_result_details": [dict(record) for record in self.found.details],
            "sae_bench_commit_hash": f"saescope {code_version()}", "sae_lens_id": self.run, "sae_lens_release_id": None,
            "sae_lens_version": None, "sae_cfg_dict": dict(self.sae),
            "eval_result_unstructured": None,
            # and ours
            "title": self.title, "version": self.version, "inputs": dict(self.inputs), "notes": list(self.found.notes),
            "metrics": _plain(self.found.metrics), "units": {
                name: {"kind": u.kind, "id": u.id.tolist(), "n_rows": u.n_rows.tolist()}
                for name, u in self.found.units.items()},
            "controls": [
                {"name": name, "metrics": _plain(found.metrics), "details": [dict(r) for r in found.details],
                 "notes": list(found.notes)}
                for name, found in self.controls.items()],
            "lacking": list(self.lacking),
            "references": [{"name": name, "metrics": _plain(m)} for name, m in self.references.items()],
        }


def write(result: EvalResult, run: Path) -> Path:
    """Write a result into its run, atomically; returns the path."""
    path = run / FOLDER / f"{result.eval}.json"
    write_json(path, result.plain())
    return path


def results(run: Path) -> list[Path]:
    """The result files of a run, by name."""
    return sorted((run / FOLDER).glob("*.json"))


def read(path: Path) -> EvalResult:
    """Read a result.

    Raises:
        SaescopeError: no such file, another format or version, or an altered file.
    """
    plain = read_json(path)
    if plain.get("format") != FORMAT or plain.get("format_version") != FORMAT_VERSION:
        raise SaescopeError(
            f"{path} is not an evaluation this code can read (format {plain.get('format')!r}, version "
            f"{plain.get('format_version')!r}); remove it, and `sae eval` will recompute it."
        )
    try:
        return _result(plain)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SaescopeError(
            f"{path} was altered ({type(error).__name__}: {error}); remove it, and `sae eval` will recompute it."
        ) from None


def _result(plain: Mapping[str, Any]) -> EvalResult:
    units = {
        name: Units(u["kind"], np.array(u["id"], dtype=np.int64), np.array(u["n_rows"], dtype=np.float64))
        for name, u in plain["units"].items()
    }
    found = Found(_read(plain["metrics"]), units, tuple(plain["eval_result_details"]), notes=tuple(plain["notes"]))
    controls = {
        c["name"]: Found(_read(c["metrics"]), units, tuple(c["details"]), notes=tuple(c["notes"]))
        for c in plain["controls"]
    }
    return EvalResult(
        plain["eval_type_id"], plain["title"], plain["version"], plain["sae_lens_id"], plain["inputs"],
        plain["eval_config"], plain["sae_cfg_dict"], found, controls, tuple(plain["lacking"]),
        {reference["name"]: _read(reference["metrics"]) for reference in plain["references"]},
    )


def _plain(metrics: Metrics) -> list[dict[str, Any]]:
    """Metrics as a list of records, which keeps their order, unlike a JSON object."""
    return [{"group": group, "name": name, **one.plain()} for group, some in metrics.items() for name, one in some.items()]


def _read(records: Sequence[Mapping[str, Any]]) -> Metrics:
    out: dict[str, dict[str, Metric]] = {}
    for record in records:
        fields = {key: value for key, value in record.items() if key not in ("group", "name")}
        out.setdefault(record["group"], {})[record["name"]] = Metric.read(fields)
    return out


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
