"""Executors of batch jobs over shards and devices: several devices on one machine come with issue 5."""
