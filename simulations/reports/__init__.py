"""Tables, CSV files, pictures and pages of what was run."""
