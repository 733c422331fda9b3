"""Data: pictures, scans and drawn scenes as samples with grey values, patches and splits."""
