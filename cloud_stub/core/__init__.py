"""The rules of the cloud: rows in, rows out. No clock, no database, no network, no randomness of its own."""
