"""Whether a circuit is true: faithfulness and completeness, baselines, specificity, stability."""
