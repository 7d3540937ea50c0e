"""The operator's commands: a thin HTTP client of the API. They hold no rules; the cloud says what is refused."""
