"""Evaluation: writes predictions to ``results.json`` and scores them with a data set's metric."""
