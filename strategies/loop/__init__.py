"""The server's round loop, for any Flower strategy, and what goes with it."""
