"""Circuits on disk: our own folder, circuit-tracer's and Neuronpedia's graph files, networkx."""
