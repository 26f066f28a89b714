"""Batches of a data set, for training and evaluation."""
