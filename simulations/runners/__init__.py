"""Where clients run: in this process, one by one or together, or on Ray."""
