"""Actors on other machines, through Dask: the cluster, its nodes, and their proxies."""
