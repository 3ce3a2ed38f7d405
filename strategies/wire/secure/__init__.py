"""What server and clients of secure sums share: secrets, masks, whole numbers, messages."""
