"""The definition of a dataset: partitions, contract, audits, types and names. Does not depend on the lake."""
