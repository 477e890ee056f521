"""Export features as JSON, CSV or HTML."""
