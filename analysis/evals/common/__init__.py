"""What all evaluations share: the rows they measure on, intervals, and the one form of results."""
