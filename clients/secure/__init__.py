"""A client's side of secure sums."""
