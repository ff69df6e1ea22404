"""Refusals of the API server and of admission: of the cluster when it is created, of its pods when the operator makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sp_ray_ml.cluster._causes_quota import quota_cause
from sp_ray_ml.cluster._snapshot import Cause, GroupState, Snapshot, condition
from sp_ray_ml.errors import KubernetesAccessError, KubernetesError

__all__ = ["group_of_pod", "missing_account", "nudge_command", "refusal", "refused_pods"]

Body = Mapping[str, Any]
_WEBHOOK = re.compile(r'admission webhook "(?P<name>[^"]+)" denied the request: ?(?P<why>.*)', re.S)
_WEBHOOK_AWAY = re.compile(r'failed calling webhook "(?P<name>[^"]+)": ?(?P<why>.*)', re.S)
_POLICY = re.compile(r"ValidatingAdmissionPolicy '(?P<name>[^']+)' .*?denied request: (?P<why>.*)", re.S)
_POD_SECURITY = re.compile(r'violates PodSecurity "(?P<level>[^":]+)[^"]*": (?P<why>.*)', re.S)
_LIMIT_RANGE = re.compile(
    r"\[?((?:minimum|maximum) \S+ usage per \w+ is .*|\S+ max limit to request ratio per .*)", re.S
)
_ACCOUNT = re.compile(r'serviceaccount "(?P<name>[^"]+)" not found')
_PRIORITY = re.compile(r"no PriorityClass with name (?P<name>\S+) was found")
_INVALID = re.compile(r'^Pod "(?P<pod>[^"]+)" is invalid: (?P<why>.*)', re.S)
_FORBIDDEN = re.compile(r'^\S+ "[^"]*" is forbidden: ', re.S)
_SAMPLES = re.compile(r" \(e\.g\. .*?regex used for validation is '.*?'\)")
_VALUE = re.compile(r'^(?P<field>[\w.\[\]"/-]+): Invalid value: (?P<value>"[^"]*"|\S+): (?P<why>.*)', re.S)


def nudge_command(cluster: Body) -> str:
    """What makes the operator look at a cluster again at once: a new annotation does."""
    metadata = cluster["metadata"]
    return (
        f"kubectl annotate raycluster {metadata['name']} -n {metadata['namespace']} "
        'sp-ray/nudged="$(date)" --overwrite'
    )


def group_of_pod(cluster: Body, pod: str, groups: Sequence[GroupState]) -> GroupState | None:
    """The head or worker group that a pod's name tells of; the operator cuts long names, and then none may be told."""
    name = cluster["metadata"]["name"]
    if pod.startswith(f"{name}-head-"):
        return groups[0]
    fitting = [state for state in groups[1:] if pod.startswith(f"{name}-{state.name}-worker-".lower())]
    return max(fitting, key=lambda state: len(state.name), default=None)


def refused_pods(snapshot: Snapshot, groups: Sequence[GroupState]) -> list[Cause]:
    """The cause why the operator cannot create pods, where it cannot."""
    cluster = snapshot.cluster
    failure = condition(cluster, "ReplicaFailure")
    short = [state for state in groups if len(state.pods) < state.wanted]
    # It goes only with the operator's next look: with all pods there it tells of the past.
    if cluster is None or failure is None or failure["status"] != "True" or not short:
        return []
    reason, _, message = str(failure.get("message") or "").partition("\n")
    if not message:
        reason, message = str(failure.get("reason") or ""), reason
    named = re.search(r'pods? "([^"]+)"', message, re.I)
    state = (
        groups[0] if "HeadPod" in reason else group_of_pod(cluster, named.group(1) if named else "", groups)
    )
    return [_pod_refusal(snapshot, state or short[0], message)]


def _pod_refusal(snapshot: Snapshot, state: GroupState, message: str) -> Cause:
    cluster = snapshot.cluster
    assert cluster is not None
    again = nudge_command(cluster)
    if cause := quota_cause(snapshot, state, message, again):
        return cause
    pods = "the head's pod" if not state.name else "its pods"
    if match := _INVALID.search(message):
        return _invalid_pod(cluster, state, match["why"])
    if match := _ACCOUNT.search(message):
        return missing_account(snapshot, state.component, match["name"], "")
    if match := _PRIORITY.search(message):
        return Cause(
            "priority_class",
            state.component,
            f"there is no PriorityClass {match['name']}",
            "See which there are: kubectl get priorityclass; "
            f"correct priorityClassName in {_template_path(cluster, state)}.spec: {_edit(cluster)}",
            permanent=True,
        )
    return _admission(snapshot, state.component, pods, message, again)


def missing_account(snapshot: Snapshot, component: str, name: str, why: str) -> Cause:
    """The cause for a service account that was missing when the operator looked last."""
    assert snapshot.cluster is not None
    namespace, again = snapshot.cluster["metadata"]["namespace"], nudge_command(snapshot.cluster)
    if any(account["metadata"]["name"] == name for account in snapshot.service_accounts or ()):
        return Cause(
            "retry",
            component,
            f"service account {name} is there by now, but KubeRay has not noticed: after each failure it waits "
            "longer, up to 17 minutes, before it tries again",
            f"Make it try now: {again}",
        )
    create = f"Create it: kubectl create serviceaccount {name} -n {namespace}; then: {again}"
    return Cause(
        "service_account",
        component,
        f"there is no service account {name} in namespace {namespace}{why}",
        # Each namespace gets this one from Kubernetes, shortly after it is made.
        f"Wait a moment: Kubernetes makes it in a new namespace. {create}" if name == "default" else create,
        permanent=name != "default",
    )


def _admission(snapshot: Snapshot, component: str, what: str, message: str, again: str) -> Cause:
    """What admission plug-ins and webhooks refuse, pods as well as whole clusters."""
    text = _FORBIDDEN.sub("", message).strip()
    if match := _WEBHOOK.search(message):
        return Cause(
            "webhook",
            component,
            f"the admission webhook {match['name']} refuses {what}: {_sentence(match['why'])}",
            f"Change what it objects to, or ask whoever runs the webhook {match['name']}",
            permanent=True,
        )
    if match := _WEBHOOK_AWAY.search(message):
        return Cause(
            "webhook",
            component,
            f"the admission webhook {match['name']} has to be asked about {what}, but does not answer: "
            f"{_sentence(match['why'])}",
            f"Have it repaired: kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations; then: {again}",
        )
    if match := _POLICY.search(message):
        return Cause(
            "policy",
            component,
            f"the policy {match['name']} refuses {what}: {_sentence(match['why'])}",
            f"See what it asks for: kubectl get validatingadmissionpolicy {match['name']} -o yaml",
            permanent=True,
        )
    if match := _POD_SECURITY.search(message):
        return Cause(
            "pod_security",
            component,
            f"the namespace takes only pods of security level {match['level']}, and refuses {what}: "
            f"{_sentence(match['why'])}",
            "Leave out --insecure, and in a manifest of your own set securityContext as it says",
            permanent=True,
        )
    if match := _LIMIT_RANGE.search(text):
        names = ", ".join(item["metadata"]["name"] for item in snapshot.limit_ranges or ())
        namespace = ((snapshot.cluster or {}).get("metadata") or {}).get("namespace")
        said = match[1].rstrip("]").replace("per Container", "of a container").replace("per Pod", "of a pod")
        return Cause(
            "limit_range",
            component,
            f"the limit range{f' {names}' if names else ''} refuses {what}: {_sentence(said)}",
            f"Ask for what it allows: kubectl describe limitrange{f' -n {namespace}' if namespace else ''}",
            permanent=True,
        )
    if "because it is being terminated" in message:
        return Cause(
            "terminating",
            component,
            "its namespace is being deleted",
            "Choose another: -n NAMESPACE",
            permanent=True,
        )
    if match := re.search(r'User "([^"]+)" cannot (\w+) resource "([^"]+)"', message):
        return Cause(
            "operator_permission",
            component,
            f"the operator may not {match[2]} {match[3]} here (account {match[1]})",
            "Have its role mended: helm upgrade kuberay-operator kuberay/kuberay-operator",
            permanent=True,
        )
    return Cause("refused", component, f"the API server refuses {what}: {_sentence(text)}", again)


def _invalid_pod(cluster: Body, state: GroupState, why: str) -> Cause:
    first = _split(why)[0]
    match = _VALUE.search(first)
    field, value, reason = (match["field"], match["value"], match["why"]) if match else ("", "", first)
    reason = _sentence(reason)
    pods = "the head's pod" if not state.name else "its pods"
    if field.startswith("metadata.") and "name" in field.lower() and state.name:
        message = (
            f"a worker group cannot be called {state.name}: names of pods are made of it, "
            f"with small letters, digits and '-' only"
        )
        field, why = f"{_group_path(cluster, state)}.groupName", ""
    elif field:
        field = field.replace("spec.", f"{_template_path(cluster, state)}.spec.", 1)
        joint = " " if reason.startswith("must") else ": "
        message = f"the API server refuses {pods}: {field}: {value}{joint}{reason}"
    else:
        message = f"the API server refuses {pods}: {reason}"
    return Cause(
        "invalid_pod",
        state.component,
        message,
        f"Correct {field or 'the manifest'}: {_edit(cluster)}",
        permanent=True,
        details=tuple(_sentence(each) for each in _split(why)[1:4]),
    )


def refusal(error: KubernetesError, snapshot: Snapshot | None = None) -> Cause | None:
    """The cause for a cluster that the API server refuses when it is created or changed.

    Args:
        error: What the API server answered.
        snapshot: Quotas and limit ranges of the namespace, where they are known.

    Returns:
        None for what is no refusal: the server away, an object that is there already.
    """
    if isinstance(error, KubernetesAccessError) or error.status in {0, 401, 404, 409} or error.status >= 502:
        return None
    message, component = error.message, "cluster"
    causes = [
        cause for cause in error.details.get("causes") or () if cause.get("field") not in {None, "<nil>"}
    ]
    if error.status == 422 and causes:
        first = causes[0]
        return Cause(
            "schema",
            component,
            f"the API server refuses the manifest: {first['field']}: {_plain(first['message'], first['field'])}",
            f"See what the field may hold: kubectl explain raycluster.{_schema_path(first['field'])}",
            permanent=True,
            details=tuple(
                f"{each['field']}: {_plain(each['message'], each['field'])}" for each in causes[1:6]
            ),
        )
    if fields := re.findall(r'unknown field "([^"]+)"', message):
        return Cause(
            "schema",
            component,
            f"the API server refuses the manifest: there is no field {fields[0]}",
            f"See which there are: kubectl explain raycluster.{_schema_path(fields[0].rpartition('.')[0])}",
            permanent=True,
            details=tuple(f"there is no field {each}" for each in fields[1:6]),
        )
    if "exceeded quota: " in message and (
        match := re.search(r"exceeded quota: ([^,]+), requested: (\S+)", message)
    ):
        return Cause(
            "quota",
            component,
            f"quota {match[1]} has no room for one more cluster ({match[2].partition('=')[0]})",
            "Delete one that is not used: sp-ray get cluster; or have the quota raised",
        )
    cause = _admission(snapshot or Snapshot(None), component, "the cluster", message, "Try again")
    return cause if cause.kind != "refused" or error.status in {400, 403, 422} else None


def _schema_path(field: str) -> str:
    return re.sub(r"\[\d+\]", "", field)


# --- words --------------------------------------------------------------------------------------------------------


def _split(text: str) -> list[str]:
    """The single problems of a list such as `[a: Invalid value: …, b: Required value]`."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return re.split(r", (?=[\w.\[\]]+: (?:Invalid|Required|Unsupported|Forbidden|Duplicate|Not found))", text)


def _sentence(text: str) -> str:
    """One line without samples, regular expressions and a full stop."""
    return re.sub(r"\s+", " ", _SAMPLES.sub("", text)).strip().rstrip(".").strip()


def _plain(text: str, field: str) -> str:
    """A problem of a schema without its field, which is said before it."""
    text = _sentence(text)
    text = re.sub(rf'^Invalid value: ("[^"]*"|\S+): ({re.escape(field)} )?', r"\1 ", text)
    match = re.fullmatch(r'"(\w+)" in body must be of type (\w+): "\w+"', text)
    if match:
        return f"must be of type {match[2]}, not {match[1]}"
    text = re.sub(
        r" should match '.*'$",
        " is no quantity" if "quantity" in field or ".resources." in field else r"\g<0>",
        text,
    )
    return text.replace(" in body", "").replace("Required value", "is required")


def _group_path(cluster: Body, state: GroupState) -> str:
    names = [group["groupName"] for group in cluster["spec"].get("workerGroupSpecs") or ()]
    return f"spec.workerGroupSpecs[{names.index(state.name)}]"


def _template_path(cluster: Body, state: GroupState) -> str:
    """Where in the RayCluster the template of a component's pods is."""
    if not state.name:
        return "spec.headGroupSpec.template"
    return f"{_group_path(cluster, state)}.template"


def _edit(cluster: Body) -> str:
    return f"kubectl edit raycluster {cluster['metadata']['name']} -n {cluster['metadata']['namespace']}"
