"""How each table and figure is measured, and how the models were made. Imported as `cipherdm_experiments`."""
