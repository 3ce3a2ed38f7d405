"""What travels between server and clients beside Flower's own records."""
