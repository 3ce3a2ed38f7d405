"""A network that is trained with differential privacy."""
