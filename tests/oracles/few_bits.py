"""Sums in few bits, in numpy and number by number."""

import numpy as np


def summed(values, bits, block=256):
    """Return the sum of all rows as their codes have it, and each row as its own codes have it.

    Args:
        values: shape (workers, n).
        bits: of a sum of codes.
        block: numbers with one scale.
    """
    workers, number = values.shape
    levels = (2 ** (bits - 1) - 1) // workers
    each = np.zeros((workers, number))
    for column in range(number):
        begin = column - column % block
        largest = np.abs(values[:, begin : begin + block]).max()
        for row in range(workers):
            if largest > 0:
                level = np.rint(float(values[row, column]) / (float(largest) / levels))
                each[row, column] = level * float(largest) / levels
    return each.sum(0), each
