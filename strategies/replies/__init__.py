"""Which replies of a round are fit to be aggregated, under any strategy."""
