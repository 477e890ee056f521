"""The subcommands `sae circuit` and `sae bench circuits`: thin wrappers of pipeline, formats and self-test."""

import argparse

from sae.cli import HelpFormatter
from sae.errors import SaescopeError
from sae.io.paths import user_path

_ABOUT = """Find the sparse feature circuit behind a behaviour of a language model, and measure how faithful it is.

The config names the behaviour (a built-in task, or your own prompt pairs), the runs whose SAEs are used, and how many nodes
and edges to keep. The result is a folder under circuits/, which the notebooks open and `sae circuit export` converts. An
interrupted run resumes after the last finished stage.
"""
_EXAMPLES = """examples:
  sae circuit configs/circuits/demo.yaml
  sae circuit configs/circuits/demo.yaml task=ioi name=ioi nodes.most=50
  sae circuit show circuits/demo                                     nodes, edges and scores
  sae circuit export circuits/demo graph.json                        for circuit-tracer or Neuronpedia
  sae circuit trace "The keys near the" --saes runs/transcoders      the attribution graph of one prompt
  sae circuit selftest                                               estimators on models whose circuit is known"""


def circuit(argv: list[str]) -> int:
    """Find the circuit behind a behaviour and test it; show, export, trace, self-test."""
    others = {"show": _show, "export": _export, "selftest": _selftest, "trace": _trace}
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:])
    parser = argparse.ArgumentParser(
        "sae circuit", description=_ABOUT, epilog=_EXAMPLES, formatter_class=HelpFormatter
    )
    parser.add_argument("config", help="a YAML file such as configs/circuits/demo.yaml; or show, export, trace, selftest")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fields of the config, for example nodes.most=50")
    parser.add_argument("--again", action="store_true", help="redo every stage, even finished ones")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    args = parser.parse_intermixed_args(argv)
    from analysis.circuits.pipeline.config import read_config
    from analysis.circuits.pipeline.run import find_circuit
    from analysis.render.circuit_text import circuit_lines

    config = read_config(args.config, args.overrides)
    found = find_circuit(config, quiet=args.quiet, again=args.again)
    if not args.quiet:
        print("\n".join(circuit_lines(found)))
        print(f"saved in {user_path(config.dir) / config.name}")
    return 0


def _show(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("sae circuit show", description="Show a circuit: scores, nodes and edges.")
    parser.add_argument("circuit", help="its folder, such as circuits/demo")
    parser.add_argument("--nodes", type=int, default=20, help="show this many nodes and edges (default: %(default)s)")
    parser.add_argument("--html", type=user_path, metavar="FILE", help="write the graph as a self-contained HTML page")
    parser.add_argument("--tables", type=user_path, metavar="FOLDER", help="write the scores as CSV and the curves as SVG")
    args = parser.parse_args(argv)
    from analysis.circuits.formats.opening import open_circuit
    from analysis.circuits.pipeline.tables import write_results
    from analysis.render.circuit_text import circuit_lines

    if args.nodes < 0:
        raise SaescopeError(f"--nodes is {args.nodes}; give 0 or more.")
    found = open_circuit(args.circuit)
    print("\n".join(circuit_lines(found, args.nodes)))
    if args.html is not None:
        found.figure().save(args.html)
        print(f"wrote {args.html}")
    for path in write_results(found, args.tables) if args.tables is not None else ():
        print(f"wrote {path}")
    return 0


def _export(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "sae circuit export", description="Write a circuit as a circuit-tracer / Neuronpedia graph file (schema_version 1)."
    )
    parser.add_argument("circuit", help="its folder, such as circuits/demo")
    parser.add_argument("file", type=user_path, help="JSON file to write")
    args = parser.parse_args(argv)
    from analysis.circuits.formats.circuit_tracer.writing import write_graph
    from analysis.circuits.formats.opening import open_circuit

    write_graph(open_circuit(args.circuit), args.file)
    print(f"wrote {args.file}")
    return 0


def _trace(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "sae circuit trace",
        description="Compute the attribution graph of one prompt: the direct linear effect of every feature, error and "
        "token on every later feature and logit, with attention patterns and norm scales frozen. Also measures how much "
        "frozen patterns miss.",
    )
    parser.add_argument("prompt", help="text whose next-token prediction is explained")
    parser.add_argument("--saes", nargs="+", required=True, metavar="RUN", help="runs or sweeps; globs work")
    parser.add_argument("--name", default="trace", help="name of the result's folder (default: %(default)s)")
    parser.add_argument("--dir", default="circuits", help="folder it is saved in (default: %(default)s)")
    parser.add_argument("--model", help="language model (default: the one the SAEs were trained on)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--mlps", choices=("held", "neurons"),
        help="MLPs without a transcoder: treat the output as an error node (held), or attribute through active neurons "
        "(default: held if any transcoder is given)",
    )
    parser.add_argument(
        "--skips", choices=("linear", "node"), default="linear",
        help="attribute through skip paths, or make each one a node (default: linear)",
    )
    parser.add_argument("--max-features", type=int, default=2000, help="maximum feature nodes (default: %(default)s)")
    parser.add_argument("--nodes", type=float, default=0.8, metavar="SHARE", help="share of influence kept (default: 0.8)")
    parser.add_argument("--edges", type=float, default=0.98, metavar="SHARE", help="the same for edges (default: 0.98)")
    parser.add_argument(
        "--gap", type=int, default=20, metavar="N",
        help="interventions that measure how much frozen patterns miss (default: 20)",
    )
    parser.add_argument("--html", type=user_path, metavar="FILE", help="write the graph as a self-contained HTML page")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    args = parser.parse_args(argv)
    if min(args.max_features, args.gap) < 0 or not (0 <= args.nodes <= 1 and 0 <= args.edges <= 1):
        raise SaescopeError("--max-features and --gap must be 0 or more; --nodes and --edges must be between 0 and 1.")
    from analysis.circuits.attribution.attribute import Limits
    from analysis.circuits.attribution.run import TraceOptions, trace_prompt
    from analysis.render.circuit_text import circuit_lines

    options = TraceOptions(
        args.saes, args.model, args.device, name=args.name, dir=args.dir, mlps=args.mlps, skips=args.skips,
        limits=Limits(args.max_features), node_share=args.nodes, edge_share=args.edges, n_gap=args.gap,
    )
    found = trace_prompt(args.prompt, options, quiet=args.quiet)
    if not args.quiet:
        print("\n".join(circuit_lines(found)))
        print(f"saved in {user_path(args.dir) / args.name}")
    if args.html is not None:
        found.figure().save(args.html)
        print(f"wrote {args.html}")
    return 0


def _selftest(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "sae circuit selftest",
        description="Run every estimator on models whose circuit is known and print how well it separates true nodes and "
        "edges from the rest (AUROC). Also run the doubling test of edges in the linear forward pass.",
    )
    parser.add_argument("--csv", type=user_path, metavar="FILE", help="also write the table")
    args = parser.parse_args(argv)
    from analysis.circuits.selftest.table import passed, selftest, shown, write

    rows = selftest()
    print(shown(rows))
    if args.csv is not None:
        write(args.csv, rows)
    return 0 if passed(rows) else 1


def bench_circuits(argv: list[str]) -> int:
    """Measure how the time of node effects grows with sites and steps."""
    parser = argparse.ArgumentParser(
        "sae bench circuits", description="Time node effects per prompt pair against the number of sites and of integrated "
        "gradients steps (should be linear in both), and measure peak memory.",
    )
    parser.add_argument("--model", default="smollm2-135m", help="default: %(default)s")
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 4, 8], help="default: %(default)s")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5], help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=8, help="prompt pairs in one batch (default: %(default)s)")
    parser.add_argument("--out", type=user_path, help="write the figures as JSON")
    args = parser.parse_args(argv)
    if min(*args.sites, *args.steps, args.pairs) < 1:
        raise SaescopeError("--sites, --steps and --pairs must be positive.")
    from analysis.circuits import bench
    from sae.io.files import write_json
    from training.display import Display

    display = Display()
    figures = bench.bench_circuits(
        model=args.model, n_sites=args.sites, n_steps=args.steps, n_pairs=args.pairs, display=display,
    )
    bench.show(figures, display)
    if args.out is not None:
        write_json(args.out, figures)
    return 0
