"""Circuit formats: Saescope's own folder, circuit-tracer and Neuronpedia graph files, networkx."""
