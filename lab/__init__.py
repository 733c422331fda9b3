"""What the scripts share, one subject a file."""
