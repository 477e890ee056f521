"""What evaluations say of single features, on disk: what is written comes back, anything else is refused in a sentence."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.evals.common import features
from analysis.evals.common.result import PerFeature
from sae.errors import SaescopeError

MADE = {
    "probe_auc": PerFeature(np.array([0.5, np.nan, 1]), "AUC", "AUC", "higher", "area under ROC"),
    "probe_concept": PerFeature(("a", None, "b"), "Tells", "label", "none", "the label"),
}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    features.write(tmp_path, "probing", MADE, "abc")
    path = features.path_of(tmp_path, "probing")
    assert features.tables(tmp_path) == [path] and [file.name for file in path.parent.iterdir()] == [path.name]
    found, weights = features.read(path)
    assert weights == "abc" and list(found) == list(MADE)
    np.testing.assert_array_equal(found["probe_auc"].values, MADE["probe_auc"].values)
    assert found["probe_concept"] == MADE["probe_concept"] and found["probe_auc"].direction == "higher"
    assert pq.read_table(path)["probe_auc"].null_count == 1
    before = path.read_bytes()
    features.write(tmp_path, "probing", found, weights)
    assert path.read_bytes() == before
    features.write(tmp_path, "probing", {}, "abc")
    assert features.tables(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncated", "another format", "a column's name", "a direction", "rows"])
def test_what_is_no_such_table_is_refused(tmp_path: Path, damage: str) -> None:
    features.write(tmp_path, "probing", MADE, "abc")
    path = features.path_of(tmp_path, "probing")
    table = pq.read_table(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:50])
    else:
        if damage == "another format":
            table = table.replace_schema_metadata({})
        elif damage == "a column's name":
            table = table.rename_columns(["feature", 'x" ; drop', "probe_concept"])
        elif damage == "rows":
            table = table.take([1, 0, 2])
        else:
            field = table.schema.field("probe_auc").with_metadata({"title": "AUC", "direction": "up"})
            table = table.cast(table.schema.set(1, field))
        pq.write_table(table, path)
    with pytest.raises(SaescopeError, match=r"probing\.features\.parquet"):
        features.read(path)
