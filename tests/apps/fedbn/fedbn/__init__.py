"""A network whose batch normalisation is each client's own."""
