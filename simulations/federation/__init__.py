"""The ServerApp and the ClientApp of simulations, experiments and deployments."""
