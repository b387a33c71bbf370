"""What benchmarks read from the command line, and what they write: records, and tables in the READMEs."""
