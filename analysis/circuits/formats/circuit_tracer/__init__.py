"""circuit-tracer and Neuronpedia graph files (schema_version 1)."""
