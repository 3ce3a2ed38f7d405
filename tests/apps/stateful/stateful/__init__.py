"""Clients that remember."""
