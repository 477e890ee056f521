"""Graph files of circuit-tracer and Neuronpedia (schema_version 1)."""
