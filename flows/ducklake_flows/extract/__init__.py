"""Extraction: one dlt run turns a chunk of partitions into staged Parquet files and receipts."""
