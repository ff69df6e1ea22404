"""One API server: bounded, repeated where that is safe, its refusals explained. Against a real HTTP server."""

from __future__ import annotations

import json
import pickle
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import POD, RAY_CLUSTER
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError, KubernetesError


class Server(ThreadingHTTPServer):
    """Answers in the order of `answers` (status, body, headers), the last one for ever; remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: list[tuple[int, object, dict[str, str]]] = []
        self.asked: list[tuple[str, str, bytes, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def answer(self, *answers):
        self.answers = [(status, body, headers[0] if headers else {}) for status, body, *headers in answers]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path, body, dict(self.headers)))
        answers = self.server.answers
        status, value, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for key, text in headers.items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815 - http.server's names

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kubeconfig(tmp_path, url, **user):
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
    }))  # fmt: skip
    return file


@pytest.fixture
def api(server, tmp_path):
    with Api(
        kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}", token="tok"), patience_s=120
    ) as api:
        yield api


def status(code, reason, message, **details):
    return code, {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}


ITEM = {"metadata": {"name": "a"}}


def test_the_context_names_the_namespace_and_the_token_is_sent(api, server):
    server.answer((200, ITEM))
    assert (api.namespace, api.context) == ("team", "here")
    assert api.get(POD, "team", "a") == ITEM
    method, path, _, headers = server.asked[0]
    assert (method, path, headers["authorization"]) == ("GET", "/api/v1/namespaces/team/pods/a", "Bearer tok")


@pytest.mark.parametrize(
    "failure", [(503, b"busy"), (500, b""), (504, b""), (429, b"", {"Retry-After": "0"}), (0, b"")]
)
def test_a_safe_request_is_sent_again_while_the_server_is_away_or_busy(failure, api, server):
    server.answer((200, ITEM), failure, failure, (200, ITEM))
    api.get(POD, "team", "a")
    assert api.get(POD, "team", "a") == ITEM
    assert len(server.asked) == api.requests == 4


@pytest.mark.parametrize("failure", [(503, b"busy"), (0, b"")])
def test_a_create_is_never_sent_twice_as_it_may_have_been_carried_out(failure, api, server):
    server.answer(failure)
    with pytest.raises(KubernetesError):
        api.create(RAY_CLUSTER, "team", ITEM)
    assert len(server.asked) == 1


def test_a_create_that_was_turned_away_for_now_is_sent_again(api, server):
    server.answer((429, b"", {"Retry-After": "0"}), (201, ITEM))
    assert api.create(RAY_CLUSTER, "team", ITEM) == ITEM


def test_repeats_end(server, tmp_path):
    server.answer((503, b"busy"))
    with Api(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"), patience_s=0.3) as api:
        with pytest.raises(KubernetesError, match="busy") as raised:
            api.get(POD, "team", "a")
    assert raised.value.status == 503


def test_a_server_that_is_not_there_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Api(kubeconfig(tmp_path, f"http://127.0.0.1:{port}"), patience_s=0.2) as api:
        with pytest.raises(KubernetesError) as raised:
            api.get(POD, "team", "a")
    assert str(raised.value) == (
        f"http://127.0.0.1:{port}: the API server cannot be reached: connection refused. Check it: kubectl cluster-info"
    )


def test_a_server_that_takes_a_connection_and_is_silent_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Api(kubeconfig(tmp_path, url)) as api, pytest.raises(KubernetesError, match="does not answer"):
            api.request("GET", "/", timeout_s=0.2, repeat=False)


def test_lists_are_read_page_by_page_with_kinds(api, server):
    first = {"metadata": {"continue": "more", "resourceVersion": "7"}, "items": [ITEM]}
    server.answer(
        (200, first), (200, {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]})
    )
    items, version = api.list(POD, "team", labels="a=b")
    assert [(each["kind"], each["metadata"]["name"]) for each in items] == [("Pod", "a"), ("Pod", "b")]
    assert version == "7"
    assert "continue=more" in server.asked[1][1]
    assert all("labelSelector=a%3Db" in path for _, path, _, _ in server.asked)


def test_a_missing_object_is_none_to_find_and_an_error_to_get(api, server):
    server.answer(status(404, "NotFound", 'rayclusters.ray.io "a" not found', name="a", kind="rayclusters"))
    assert api.find(RAY_CLUSTER, "team", "a") is None
    with pytest.raises(ClusterNotFoundError, match="not found"):
        api.get(RAY_CLUSTER, "team", "a")
    assert api.delete(RAY_CLUSTER, "team", "a") is False


def test_another_object_of_the_name_is_not_deleted(api, server):
    server.answer(status(409, "Conflict", "the UID in the precondition does not match"))
    assert api.delete(RAY_CLUSTER, "team", "a", uid="u1") is False
    assert json.loads(server.asked[0][2])["preconditions"] == {"uid": "u1"}


@pytest.mark.parametrize(
    ("answer", "kind", "message", "hint", "code"),
    [
        (status(401, "Unauthorized", "Unauthorized"), KubernetesAccessError, "wrong or have expired", "Log in again", 2),
        (status(403, "Forbidden", 'rayclusters.ray.io is forbidden: User "x" cannot list resource', kind="rayclusters",
                group="ray.io"), KubernetesAccessError, "not allowed: ", "kubectl auth can-i --list -n team", 2),
        (status(403, "Forbidden", 'roles.rbac.authorization.k8s.io "r" is forbidden: user "x" (groups=["y"]) is attempting to '
                'grant RBAC permissions not currently held:\n{APIGroups:["ray.io"], Verbs:["patch"]}', name="r"),
         KubernetesAccessError, 'rights that they do not have: {APIGroups:["ray.io"], Verbs:["patch"]}',
         "kubectl auth can-i --list -n team", 2),
        (status(403, "Forbidden", 'pods "p" is forbidden: exceeded quota: q, requested: cpu=2'), KubernetesError,
         "exceeded quota", None, 1),
        ((404, b"404 page not found"), KubernetesError, "does not know RayClusters (ray.io/v1)", "Install the KubeRay", 1),
        (status(404, "NotFound", 'namespaces "team" not found', name="team", kind="namespaces"), ClusterNotFoundError,
         "there is no namespace team", "kubectl create namespace team", 2),
        (status(422, "Invalid", "RayCluster is invalid", name="a",
                causes=[{"field": "spec.x", "message": "Invalid value: 3"}]), KubernetesError,
         "refuses it: spec.x: Invalid value: 3", None, 1),
        (status(409, "Conflict", "object has been modified"), KubernetesError, "object has been modified", None, 1),
    ],
)  # fmt: skip
def test_a_refusal_says_what_why_and_what_next(answer, kind, message, hint, code, api, server):
    server.answer(answer)
    with pytest.raises(kind) as raised:
        api.list(RAY_CLUSTER, "team")
    assert message in raised.value.message
    assert raised.value.exit_code == code
    assert (hint in raised.value.hint) if hint else True
    assert pickle.loads(pickle.dumps(raised.value)).message == raised.value.message


def test_an_answer_that_is_no_json_is_an_error(api, server):
    server.answer((200, b"<html>"))
    with pytest.raises(KubernetesError, match="not JSON"):
        api.get(POD, "team", "a")


def test_a_pods_own_answer_is_passed_on_as_it_is(api, server):
    server.answer((418, b"tea"))
    assert api.exchange("GET", "/x", headers={"X-Ray-Authorization": "Bearer t"}) == (418, b"tea")
    assert server.asked[0][3]["X-Ray-Authorization"] == "Bearer t"


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "there is no kubeconfig here"), ("", "cannot be used"), ("a: [", "cannot be used"), ("[]", "cannot be used"),
     ("apiVersion: v1\nkind: Config\n", "cannot be used")],
)  # fmt: skip
def test_a_kubeconfig_that_is_none_is_the_users_mistake(text, words, tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(KubernetesAccessError, match=words) as raised:
        Api()
    assert raised.value.exit_code == 2
    assert "KUBECONFIG" in raised.value.hint


def test_an_unknown_context_is_named_with_a_near_one(tmp_path):
    with pytest.raises(KubernetesAccessError, match="no context her; did you mean here"):
        Api(kubeconfig(tmp_path, "http://127.0.0.1:1"), "her")
