"""The files of a SAELens folder, and the version of its format."""

WEIGHTS, CONFIG, SCALER = "sae_weights.safetensors", "cfg.json", "activation_scaler.json"
SAELENS_VERSION = "6.54.12"
"""The version whose format is written. Without it in the metadata SAELens takes a file for one of before 6.0 and drops
the metadata."""
