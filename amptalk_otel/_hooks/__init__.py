"""The seams of live agents, orchestrators and state managers, and the thin wrappers put on them."""
