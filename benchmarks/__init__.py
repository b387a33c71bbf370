"""One question a file; each writes its answer to ``results/*.json``."""
