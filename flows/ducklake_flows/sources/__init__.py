"""Sources: exact conversion of files and rows of any form to Arrow tables."""
