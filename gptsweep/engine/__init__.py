"""Rows in, completions out: scheduler, key/value cache, attention, sampler. Sees token ids, never text."""
