"""Checks of a circuit: faithfulness and completeness, baselines, specificity, stability."""
