"""Names, tables and parts of a circuit."""

import numpy as np
import pytest

from analysis.circuits.graph import layer_of, site_names
from analysis.circuits.nodes import ANYWHERE, ERROR, OUTPUT, SKIP, Nodes
from sae.errors import SaescopeError
from tests.analysis.circuits.graphs import SITES, circuit
from training.site import Site


def test_names_say_site_feature_and_position() -> None:
    assert site_names(SITES) == ["attn-0", "mlp-0", "resid-0", "resid-2", "attn-5"]
    nodes = Nodes(np.array([0, 1, 2, 3]), np.array([3, 4, 5, ANYWHERE]), np.array([7, SKIP, ERROR, 0]))
    numbers = {name: np.arange(4.0) for name in ("effect", "low", "high", "value", "reference", "inclusion")}
    some = circuit(e=0, nodes=nodes, **numbers)
    assert some.names == ["attn-0/f7@3", "mlp-0/skip@4", "resid-0/error@5", "resid-2/f0"]
    assert some.node_name(OUTPUT) == "output"
    assert some.select("resid-0/error", "attn-0/f7@3").triples == [(0, 3, 7), (2, 5, ERROR)]
    with pytest.raises(SaescopeError, match="resid-0/error@5"):
        some.find("resid-0/error@6")


def test_sites_of_one_short_name_keep_their_hooks() -> None:
    both = [Site(input="blocks.1.hook_mlp_out"), Site(input="blocks.1.mlp.hook_in", target="blocks.1.hook_mlp_out")]
    assert site_names(both) == ["blocks.1.hook_mlp_out", "blocks.1.mlp.hook_in>blocks.1.hook_mlp_out"]
    update = Site(input="blocks.3.hook_resid_pre", target="blocks.3.hook_resid_post", update=True)
    others = [update, Site(input="hook_embed"), Site(input="blocks.3.hook_resid_pre")]
    assert site_names(others) == ["update-3", "embed", "resid-pre-3"]
    assert [layer_of(site) for site in others] == [3, None, 3]


def test_tables_hold_every_node_and_edge_with_its_own_numbers() -> None:
    whole = circuit()
    nodes, edges = whole.table(), whole.table("edges")
    assert [abs(row["effect"]) for row in nodes] == sorted(np.abs(whole.effect), reverse=True)
    for row in nodes:
        (i,) = whole.find(row["node"])
        assert (row["effect"], row["low"], row["inclusion"]) == (whole.effect[i], whole.low[i], whole.inclusion[i])
        assert (row["feature"] is None) == (row["kind"] != "feature")
    ends = {(whole.node_name(s), whole.node_name(t)): w for s, t, w in zip(
        whole.source.tolist(), whole.target.tolist(), whole.weight.tolist(), strict=True)}
    assert {(row["source"], row["target"]): row["weight"] for row in edges} == ends
    assert {row["inclusion"] for row in edges} == {None}


def test_a_part_keeps_numbers_and_loses_scores() -> None:
    whole = circuit()
    gone = whole.names[3]
    part = whole.without(gone)
    assert part.names == [name for name in whole.names if name != gone] and part.scores == {}
    for row in part.table("edges"):
        assert row in whole.table("edges")
    assert len(part.source) == sum(gone not in (row["source"], row["target"]) for row in whole.table("edges"))
    assert whole.take(np.ones(len(whole.nodes), dtype=bool)) is whole


def test_consensus_keeps_what_most_bootstraps_chose() -> None:
    whole = circuit()
    agreed = whole.consensus(0.6)
    assert agreed.names == [name for name, share in zip(whole.names, whole.inclusion, strict=True) if share >= 0.6]
    edges = circuit(edge_inclusion=np.linspace(0, 1, len(whole.source)))
    assert (edges.consensus(0.6).edge_inclusion >= 0.6).all()
    with pytest.raises(SaescopeError, match="keys"):
        circuit(inclusion=np.full(len(whole.nodes), np.nan)).consensus()


def test_features_are_counted_once_over_positions() -> None:
    whole = circuit(n=150)
    assert whole.positional and not circuit(positional=False).positional
    assert whole.n_features == len({name.rpartition("@")[0] for name in whole.names}) < len(whole.nodes)
