"""Open a circuit in any supported format."""

from pathlib import Path

from analysis.circuits.formats.circuit_tracer.reading import read_graph
from analysis.circuits.formats.store import read_circuit
from analysis.circuits.graph import Circuit
from sae.errors import SaescopeError
from sae.io.paths import user_path

_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin"}


def open_circuit(path: Path | str) -> Circuit:
    """Open a circuit's folder (`circuits/NAME`) or a circuit-tracer or Neuronpedia graph file (`.json`).

    Raises:
        SaescopeError: nothing there; a pickle; or as `read_circuit` and `read_graph`.
    """
    path = user_path(path)
    if path.suffix in _PICKLES:
        raise SaescopeError(
            f"{path}: is a pickle. Opening one can run arbitrary code, so Saescope never does. If it is a circuit-tracer "
            "graph, export it as JSON (circuit_tracer.utils.create_graph_files) and open that."
        )
    if path.is_dir():
        return read_circuit(path)
    if not path.exists():
        raise SaescopeError(f"{path}: there is no such file or folder.")
    return read_graph(path)
