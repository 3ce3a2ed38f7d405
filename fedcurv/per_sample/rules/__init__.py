"""Closed forms, a file for each kind of layer; a rule registers itself as its file is imported."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
