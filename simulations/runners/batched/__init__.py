"""Clients with perceptrons of one shape, trained together by a few large operations."""
