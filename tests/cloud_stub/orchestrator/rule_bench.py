"""What the rule tests share: names of versions, a policy, and groups that run or fail something."""

from cloud_stub.core.commands import PolicyDraft
from tests.cloud_stub.orchestrator.cloud_bench import Cloud, Pi

V1, V2, V3 = "acme/app:1.0", "acme/app:2.0", "acme/app:3.0"
POLICY = PolicyDraft(10, 2, (V1,))


def running(cloud: Cloud, count: int, version: str = V1, group: str = "north") -> list[Pi]:
    """Return a group whose members all run a version."""
    pis = cloud.fleet(count, group)
    cloud.deploy(group, version)
    for pi in pis:
        cloud.begin(pi)
        cloud.succeed(pi)
    return pis


def fail(cloud: Cloud, *pis: Pi) -> None:
    """Let devices begin and fail by the update's fault."""
    for pi in pis:
        cloud.begin(pi)
        cloud.fail(pi)


def sha256_of(cloud: Cloud, name: str) -> str:
    """Return the identity of an imported update."""
    with cloud.store.read() as reader:
        row = reader.update(name)
    assert row is not None
    sha256: str = row.sha256
    return sha256
