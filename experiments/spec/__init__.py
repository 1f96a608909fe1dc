"""What a sweep asks for: sweep and cluster files, resolved configs, ids of runs."""
