"""Deployment of the pipeline: the services started from wheels, the Prefect deployments, and the image."""
