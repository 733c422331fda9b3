"""The code that the scripts share, one subject in each file."""
