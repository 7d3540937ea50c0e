"""Scenario texts that several tests build on."""

SMALL = """
name = "small"
seed = 3

[[fleet]]
group = "kitchen"
count = 4
properties = { manufacturer = "acme", model = "one" }

[[fleet]]
name = "late"
group = "kitchen"
count = 2
properties = { manufacturer = "acme", model = "two" }
arrives = "by_step"

[[update]]
id = "acme/app:1.0"
compatibility = [{ manufacturer = "acme" }]

[[failure]]
update = "acme/app:1.0"
how = "health_fails"
count = 1

[[step]]
do = "import"
update = "acme/app:1.0"

[[step]]
do = "deploy"
name = "first"
group = "kitchen"
updates = ["acme/app:1.0"]

[[step]]
do = "join"
fleet = "late"

[[step]]
do = "wait"
until = { what = "runs", group = "kitchen", update = "acme/app:1.0", at_least = 5 }

[[expect]]
what = "count"
deployment = "first"
of = "counted"
equals = 1
"""
