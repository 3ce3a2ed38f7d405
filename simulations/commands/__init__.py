"""The commands, one file each, and the frame that they share."""
