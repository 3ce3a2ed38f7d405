"""Wire format beside Flower's own records."""
