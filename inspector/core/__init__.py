"""The pure half of the inspector: a message in, one value `Seen` out, and lines of text made from it."""
