"""What is told of a team is what Kubernetes says, not what a member wrote into a ConfigMap."""

from __future__ import annotations

import json

import pytest

from sp_ray_ml.cluster import Team
from sp_ray_ml.cluster._kinds import CONFIG_MAP, ROLE_BINDING
from sp_ray_ml.cluster._team_apply import carry_out
from sp_ray_ml.cluster._team_look import all_teams, describe, find_team
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError

from .kept import Kept

SPACE = "team-graph"
MEMBERS = {
    "owners": ["ada@example.com", "user:robot"], "contributors": ["group:g@example.com", "serviceaccount:ci/trainer"],
}  # fmt: skip


def applied(**data: str) -> Kept:
    """A team, and what a contributor has written since."""
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "trainer", "namespace": "ci"},
    }
    api = Kept(account)
    team = Team(name="graph", **MEMBERS)
    carry_out(api, "graph", team, frozenset(), confirm=lambda _: True, on_step=lambda _: None)
    config = api.find(CONFIG_MAP, SPACE, "sp-ray-team")
    assert config is not None
    api.put(
        {**config, "data": {**config["data"], **{key.replace("_", "."): text for key, text in data.items()}}}
    )
    return api


def test_members_are_those_who_are_bound_whatever_the_config_map_says() -> None:
    api = applied(team_json=json.dumps({"owners": ["eve@example.com"]}))
    found = describe(api, "graph", [SPACE])
    assert found.members == {
        "owner": MEMBERS["owners"], "contributor": MEMBERS["contributors"], "viewer": [],
    }  # fmt: skip
    assert found.unseen == ()
    api.fails[ROLE_BINDING.path(SPACE)] = KubernetesAccessError("not allowed", status=403)
    found = describe(api, "graph", [SPACE])
    assert found.members == {"owner": ["eve@example.com"], "contributor": [], "viewer": []}
    assert "members are as its ConfigMap has them, which they may write" in found.unseen[0]


@pytest.mark.parametrize(
    "text",
    [
        '{"owners": [1], "viewers": 3, "contributors": {"a": 1}, "namespaces": 4}', "[1]", "[" * 100_000, "{",
        '{"namespaces": ["team-graph", 7, "../kube-system"]}',
    ],
)  # fmt: skip
def test_a_team_file_of_another_form_breaks_nothing(text: str) -> None:
    api = applied(team_json=text, cluster_json=text)
    api.namespace = SPACE
    api.fails["/api/v1/namespaces"] = forbidden = KubernetesAccessError("not allowed", status=403)
    api.fails[ROLE_BINDING.path(SPACE)] = forbidden
    (found,) = all_teams(api)
    assert found.namespaces == (SPACE,)
    assert found.lines()
    assert found.row()[0] == "graph"
    assert found.as_dict()


def test_no_terminal_is_told_anything_by_what_a_member_wrote() -> None:
    api = applied(cluster_json='{"image": "a\\u001b[2J", "\\u0007": ["\\u001b]0;x\\u0007"]}')
    api.put({
        "apiVersion": ROLE_BINDING.api_version, "kind": "RoleBinding",
        "metadata": {"name": "sp-ray-viewer", "namespace": SPACE}, "subjects": [{"kind": "User", "name": "eve\x1b[1A"}],
    })  # fmt: skip
    text = "".join(describe(api, "graph", [SPACE]).lines())
    assert text.isprintable()
    assert "user:eve[1A" in text
    config = api.find(CONFIG_MAP, SPACE, "sp-ray-team")
    assert config is not None
    api.put({**config, "data": {"team": "x\x1b[2J"}})
    api.fails["/api/v1/namespaces"] = KubernetesAccessError("not allowed", status=403)
    with pytest.raises(ClusterNotFoundError) as raised:
        find_team(api, "graph", SPACE)
    assert str(raised.value).isprintable()
