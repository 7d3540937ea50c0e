"""The live world: every virtual device with its own MQTT connection and its own downloads, on one asyncio loop."""
