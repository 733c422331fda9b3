"""What a script tells MLflow, and how MLflow gets it, after an outage too."""
