"""What results are worth: scores, baselines, distances of surfaces, and the pages that show them."""
