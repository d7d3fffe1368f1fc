"""What surrounds a real tritonserver: finding and running it, code of Python stages, repository checks."""
