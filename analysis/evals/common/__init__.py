"""Shared by all evaluations: the rows they measure on, intervals, and the result format."""
