"""An app around a NumPyClient."""
