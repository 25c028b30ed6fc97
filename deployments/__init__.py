"""Where the pipeline runs: the services, started from wheels; the Prefect deployments; the image."""
