"""The routes of `/api/v1`, one module for each thing. They hold no rules: they read, show, and hand commands over."""
