"""Slow, obviously right versions, written apart from the code and in float64."""
