"""New certificates for many hosts, ring by ring: what a rollout is, and what decides (ADR 0053)."""
