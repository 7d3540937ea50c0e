"""What the inspector needs from outside: a broker to listen to, and files to read."""
