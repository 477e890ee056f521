"""Language models with named hooks: loading, reading activations, replacing activations."""
