"""Extraction: a chunk of partitions through one dlt run to staged Parquet and receipts."""
