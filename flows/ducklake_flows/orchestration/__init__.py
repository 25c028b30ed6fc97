"""Prefect and Dask: the gate, the server, the cluster, events and automations."""
