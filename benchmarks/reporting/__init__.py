"""Command line and output of the benchmarks: shared options, records, and tables in the READMEs."""
