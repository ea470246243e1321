"""Named targets, one for each table and figure, that are measured again by one command and can be resumed."""
