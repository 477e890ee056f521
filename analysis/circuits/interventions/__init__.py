"""Interventions on a circuit's nodes: predicted and measured effects on the output and on other nodes."""
