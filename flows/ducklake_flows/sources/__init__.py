"""Sources: how files and rows of any form become Arrow tables, exactly."""
