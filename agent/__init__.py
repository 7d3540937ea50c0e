"""What runs on a device: it obeys signed assignments, and always leaves one good slot to go back to.

It never imports the cloud. The rules are in `core`, pure; `adapters` touch the world; `runtime` feeds one to the other.
"""
