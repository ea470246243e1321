"""Numbers of records that targets are checked with, as values: called with `Records`, each gives one float."""
