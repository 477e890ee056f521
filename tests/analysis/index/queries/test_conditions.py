"""Filters as people type them, against the rows that they are to leave."""

import json

import duckdb
import pytest

from analysis.index.queries.conditions import condition
from sae.errors import SaescopeError

COLUMNS = ("feature", "density", "dead", "top_token", "promoted_token")
TOKENS = [" the", "the", "NA", "a\x00b", "it's", 'q"', "a, b", "x and y", "\\", "é😀", "=", "'; DROP TABLE stats; --", ""]


@pytest.fixture(scope="module")
def stats() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE stats (feature INTEGER, density DOUBLE, dead BOOLEAN, top_token VARCHAR)")
    connection.executemany("INSERT INTO stats VALUES (?, ?, ?, ?)",
                           [[i, i / 100, i % 2 == 0, text] for i, text in enumerate(TOKENS)])
    return connection


def fits(stats: duckdb.DuckDBPyConnection, text: str) -> list[int]:
    return [row[0] for row in stats.execute(f"SELECT feature FROM stats WHERE {condition(text, COLUMNS)}").fetchall()]


@pytest.mark.parametrize("i", range(len(TOKENS)))
def test_a_text_in_quotes_is_that_text(stats: duckdb.DuckDBPyConnection, i: int) -> None:
    assert fits(stats, f"top_token = {json.dumps(TOKENS[i])}") == [i]
    assert fits(stats, f"density >= 2%, top_token = {json.dumps(TOKENS[i])} and feature < 100") == ([i] if i > 1 else [])
    assert i not in fits(stats, f"top_token != {json.dumps(TOKENS[i])}")


def test_a_text_without_quotes_is_a_word(stats: duckdb.DuckDBPyConnection) -> None:
    assert fits(stats, "top_token = the") == [0, 1] and fits(stats, "TOP_TOKEN=NA") == [2]


def test_numbers_and_flags(stats: duckdb.DuckDBPyConnection) -> None:
    assert fits(stats, "density > 9.5%, dead = true") == [10, 12] and fits(stats, "density<=.01 & dead=no") == [1]


@pytest.mark.parametrize("bad", ["top_token", "top_token =", "density = x", "top_token < a", 'top_token = "a', "densty > 1",
                                 "1=1", "density > (SELECT 1)", 'top_token = "a" OR 1=1'])
def test_what_cannot_be_compared_is_refused(bad: str) -> None:
    with pytest.raises(SaescopeError):
        condition(bad, COLUMNS)


def test_further_columns_hold_texts() -> None:
    columns = (*COLUMNS, "probe_concept")
    assert condition("probe_concept = a", columns, ("top_token", "probe_concept")) == "trim(\"probe_concept\") = ('a')"
    with pytest.raises(SaescopeError):
        condition("probe_concept = a", columns)
