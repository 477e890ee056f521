"""Distributed training: `torchrun --nproc-per-node N -m sae.cli train CONFIG`, with unchanged configs.

The ranks form a grid: groups of `train.shards` neighbouring ranks shard the features of an SAE and see the same rows, and
each batch is split over the groups. A batch is `data.batch_rows` rows in total, so losses, steps and checkpoints don't
depend on the number of ranks.
"""
