"""Hyperparameter search: the command rltune and `rltrain.tune`."""
