"""A federation of real processes: SuperLink, SuperNodes, keys, and a run on them."""
