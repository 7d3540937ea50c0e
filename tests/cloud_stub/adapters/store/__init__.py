"""The store: tables, transactions, durability."""
