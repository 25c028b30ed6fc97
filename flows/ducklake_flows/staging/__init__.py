"""The stage: what lies between extraction and publishing. Layout, receipts, inspection of staged files."""
