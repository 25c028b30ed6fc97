"""The stage between extraction and publishing: layout, receipts and inspection of staged files."""
