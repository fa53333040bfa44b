"""Tasks: data sets, benchmarks by name, and the rows they give."""
