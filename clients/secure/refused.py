"""What a node gives to nobody."""


class RefusedByNode(ValueError):
    """A server asks for something that a node gives to nobody."""
