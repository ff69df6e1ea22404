"""Ray clusters on Kubernetes, by KubeRay: made by one call, explained while they come, and gone when idle."""
