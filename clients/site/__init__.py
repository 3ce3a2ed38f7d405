"""A site: several worker processes on one machine that train one client's model together."""
