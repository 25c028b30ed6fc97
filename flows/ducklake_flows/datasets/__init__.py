"""What a dataset is: partitions, contract, audits, types and names. Knows nothing of the lake."""
