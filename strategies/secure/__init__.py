"""Secure sums: the server learns the sum of a round's replies and no single one."""
