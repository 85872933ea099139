"""Kubernetes with KubeRay and Kueue."""
