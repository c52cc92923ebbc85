"""The role that k8s/base makes has the rights that the commands use, and no others."""

from itertools import product

import yaml

from tests.api_server import ApiServer
from tests.cluster_objects import Commands, ended, meanwhile, pod
from tests.conftest import ROOT

VERBS = {
    "POST": "create",
    "GET": "get",
    "LIST": "list",
    "WATCH": "watch",
    "PATCH": "patch",
    "DELETE": "delete",
}
KINDS = {"job": "Job", "jobset": "JobSet", "trainjob": "TrainJob"}

Right = tuple[str, str, str]


def granted() -> set[Right]:
    role = yaml.safe_load((ROOT / "k8s" / "base" / "role.yaml").read_text())
    return {
        right
        for rule in role["rules"]
        for right in product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


def used(server: ApiServer) -> set[Right]:
    """What was asked of a namespace, as RBAC has it: group, resource, verb."""
    found = set()
    for asked in server.requests:
        before, _, after = asked.path.partition("/namespaces/")
        if after:
            group = before.split("/")[2] if before.startswith("/apis") else ""
            _, plural, *rest = after.split("/")
            resource = "/".join([plural, *rest[1:]])
            found.add((group, resource, VERBS[asked.method]))
    return found


def test_the_role_is_what_the_commands_ask(server: ApiServer, run: Commands) -> None:
    for form, kind in KINDS.items():
        run(
            "submit",
            "kubernetes",
            ROOT / "examples" / "digits.toml",
            "--nodes",
            "2",
            "--form",
            form,
        )
        for name in ([], ["digits"]):
            assert run("kubernetes", "status", *name).code == 0
        server.put(pod(0))

        def goes_on(kind: str = kind) -> None:
            server.until(lambda: all(map(server.is_open, ("/events$", "/log$", "/pods$"))))
            server.until(lambda: server.is_open(f"/{kind.lower()}s$"))
            server.put(pod(0, "Succeeded", 0))
            done = "Completed" if kind == "JobSet" else "Complete"
            server.change(kind, "digits", status=ended(done))

        with meanwhile(goes_on):
            assert run("kubernetes", "follow", "digits").code == 0
        assert run("kubernetes", "cancel", "digits").code == 0
        server.remove("Pod", "digits-0-abcde")
    assert used(server) == granted()
