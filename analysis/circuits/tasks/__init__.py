"""Tasks: prompt pairs, the metric on the model's answer, and whether the model can do the task at all."""
