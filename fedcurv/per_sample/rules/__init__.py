"""Closed forms, a file for each kind of layer; a rule registers itself as its file is imported."""

from fedcurv.discovery import import_all

import_all(__name__, __path__)
