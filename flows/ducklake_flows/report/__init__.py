"""What the lake tells: failures by cause, the partition grid, the report page, metrics and lineage. Changes nothing."""
