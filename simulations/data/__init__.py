"""Data sets by name, a data owner's own files, and how samples are dealt out to clients."""
