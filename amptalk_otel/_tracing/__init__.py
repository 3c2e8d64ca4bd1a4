"""Spans that follow a message from agent to agent. Knows messages and OpenTelemetry, and nothing of agents' insides."""
