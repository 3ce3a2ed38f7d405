"""A classifier of texts, tuned by adapters."""
