"""The figure of each target, drawn from the records in a folder. Views are imported when a figure is drawn."""
