"""A team's identity in the clouds: annotations by which each knows it, and the commands that give it rights there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sp_ray_ml.cluster.team_settings import TeamIdentity

__all__ = ["cloud_commands", "cloud_endpoints", "identity_annotations", "identity_labels"]

_AZURE = "azure.workload.identity"
_ANY = "*:443"


def identity_annotations(identity: TeamIdentity) -> dict[str, str]:
    """Annotations of the service account."""
    found = {
        "iam.gke.io/gcp-service-account": identity.gke,
        "eks.amazonaws.com/role-arn": identity.eks,
        f"{_AZURE}/client-id": identity.azure,
        f"{_AZURE}/tenant-id": identity.azure_tenant,
    }
    return {key: value for key, value in found.items() if value}


def identity_labels(identity: TeamIdentity) -> dict[str, str]:
    """Labels of the service account and of the pods that use it: Azure's webhook goes by them."""
    return {f"{_AZURE}/use": "true"} if identity.azure else {}


def cloud_endpoints(identity: TeamIdentity) -> list[str]:
    """What its pods must reach to use it, as `egress` has it."""
    found = []
    if identity.gke or identity.eks:
        found.append("workload-identity")
    if identity.buckets or identity.secrets or identity.eks or identity.azure:
        found.append(_ANY)  # tokens, buckets and secrets are at names, and a NetworkPolicy knows none
    return found


def cloud_commands(identity: TeamIdentity, namespaces: Sequence[str], account: str) -> list[str]:
    """Commands, or what is to be done, that give it its rights in the cloud. This package does none of it."""
    return [
        *(_google(identity, namespaces, account) if identity.gke else ()),
        *(_amazon(identity, namespaces, account) if identity.eks else ()),
        *(_azure(identity, namespaces, account) if identity.azure else ()),
    ]


def _google(identity: TeamIdentity, namespaces: Sequence[str], account: str) -> Iterator[str]:
    assert identity.gke is not None
    project = identity.gke.partition("@")[2].partition(".")[0]
    for namespace in namespaces:
        yield (
            f"gcloud iam service-accounts add-iam-policy-binding {identity.gke} --role roles/iam.workloadIdentityUser "
            f"--member 'serviceAccount:{project}.svc.id.goog[{namespace}/{account}]'"
        )
    for bucket in (each for each in identity.buckets if each.startswith("gs://")):
        name = bucket.removeprefix("gs://").partition("/")[0]
        yield (
            f"gcloud storage buckets add-iam-policy-binding gs://{name} --role roles/storage.objectUser "
            f"--member serviceAccount:{identity.gke}"
        )
    for secret in (each for each in identity.secrets if each.startswith("projects/")):
        _, owner, _, name = secret.split("/")
        yield (
            f"gcloud secrets add-iam-policy-binding {name} --project {owner} "
            f"--role roles/secretmanager.secretAccessor --member serviceAccount:{identity.gke}"
        )


def _amazon(identity: TeamIdentity, namespaces: Sequence[str], account: str) -> Iterator[str]:
    who = ", ".join(f"system:serviceaccount:{namespace}:{account}" for namespace in namespaces)
    yield f"in the trust policy of {identity.eks}: the OIDC provider's sub is one of {who}"
    buckets = [b.removeprefix("s3://").partition("/")[0] for b in identity.buckets if b.startswith("s3://")]
    if buckets:
        names = ", ".join(f"arn:aws:s3:::{name}/*" for name in buckets)
        yield f"in a policy of it: s3:GetObject, s3:PutObject, s3:DeleteObject on {names}; s3:ListBucket on the buckets"
    secrets = [each for each in identity.secrets if each.startswith("arn:")]
    if secrets:
        yield f"in a policy of it: secretsmanager:GetSecretValue on {', '.join(secrets)}"


def _azure(identity: TeamIdentity, namespaces: Sequence[str], account: str) -> Iterator[str]:
    for namespace in namespaces:
        yield (
            f"az identity federated-credential create --identity-name NAME --resource-group GROUP --name {namespace} "
            f"--issuer ISSUER --subject system:serviceaccount:{namespace}:{account}  # the identity {identity.azure}"
        )
    for url in (each for each in identity.buckets if re.match(r"a(bfss?|z)://", each)):
        yield f"az role assignment create --role 'Storage Blob Data Contributor' --assignee {identity.azure} --scope SCOPE  # {url}"
    for secret in (each for each in identity.secrets if each.startswith("https://")):
        yield f"az role assignment create --role 'Key Vault Secrets User' --assignee {identity.azure} --scope SCOPE  # {secret}"
