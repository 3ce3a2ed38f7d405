"""A classifier of a table's rows."""
