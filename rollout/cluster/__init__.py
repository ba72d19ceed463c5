"""Actors on other machines, through Dask: nodes, their proxies, and the cluster of them."""
