"""Language models with named hooks: loading them, reading activations and replacing them."""
