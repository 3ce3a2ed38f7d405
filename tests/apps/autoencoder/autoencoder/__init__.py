"""An autoencoder of handwritten digits."""
