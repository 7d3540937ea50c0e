"""What operators and devices reach over HTTP: the REST API, the pages, and the repository of files.

It holds no rules of deployments (`core` does): it reads rows, shows them, and hands commands to the service.
"""
