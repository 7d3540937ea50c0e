"""Look at what crosses MQTT between devices and cloud: `lastgood mqtt tail` and `lastgood mqtt seq`.

It is not a part of the service: it only listens, and sends nothing. It keeps the rule that it imports
`protocol` alone, so that what it shows is read by the contract, and never by one side's opinion of it.
"""
