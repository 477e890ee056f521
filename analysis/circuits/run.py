"""From a config to a tested circuit: the whole way, with progress, and going on where it was interrupted.

    behaviour   does the model do it, on held-out examples
    effects     of every node, batch by batch, on training examples
    agreement   of the estimator with exact ablation, site by site
    nodes       the largest; edges between them through the direct path; nothing that hangs loose
    tests       on held-out examples: faithfulness, completeness, edges alone, baselines, stability, specificity

Finished stages lie in `DIR/.work/NAME`, each with what it was made from; the circuit gets its name when it is whole.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.circuits.checks.stability import Stability, stability
from analysis.circuits.config import CircuitConfig, read_config
from analysis.circuits.effects.agreement import Agreement
from analysis.circuits.effects.edges import edge_effects
from analysis.circuits.effects.moves import Entries, moves_of, node_effects_of
from analysis.circuits.effects.nodes import site_gradients
from analysis.circuits.effects.reference import Means, Reference, mean_states, reference_states
from analysis.circuits.estimate import estimate
from analysis.circuits.formats.store import save_circuit
from analysis.circuits.graph import Circuit
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ERROR, EdgeEffects, NodeEffects, joined
from analysis.circuits.sites import circuit_model, open_model, open_saes
from analysis.circuits.stages import Stages
from analysis.circuits.tasks.behaviour import Behaviour, check_behaviour
from analysis.circuits.tasks.config import make_task
from analysis.circuits.tasks.examples import Examples
from analysis.circuits.tasks.tokens import one_length, tokenise
from sae.errors import SaescopeError
from training.display import Display
