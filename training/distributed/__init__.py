"""One training on several processes: `torchrun --nproc-per-node N -m sae.cli train CONFIG`, and nothing else changes.

The ranks form a grid: `train.shards` neighbouring ones share the features of an SAE and see the same rows, and as many
such groups as there are share the rows of each batch. A batch is `data.batch_rows` rows in all, so that losses, steps and
checkpoints mean the same on any number of ranks.
"""
