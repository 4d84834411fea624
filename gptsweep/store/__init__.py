"""Run directories on disk: one writer, one reader, the table of a sweep."""
