"""File names and format version of SAELens."""

WEIGHTS, CONFIG, SCALER = "sae_weights.safetensors", "cfg.json", "activation_scaler.json"
SAELENS_VERSION = "6.54.12"
"""The format version that is written. Without it SAELens assumes a file from before 6.0 and drops the metadata."""
