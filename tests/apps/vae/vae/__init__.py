"""A variational autoencoder of handwritten digits."""
