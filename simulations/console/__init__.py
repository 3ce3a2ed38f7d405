"""What a command shows while it works, and how it and its programs come to an end."""
