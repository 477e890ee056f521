"""Interventions on nodes of a circuit: what they do to the output and to other nodes, predicted and measured."""
