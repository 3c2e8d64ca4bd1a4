"""The code blocks of the requirement document ("AMPTALK Performance Monitoring"), verbatim, by section."""

from __future__ import annotations

from dataclasses import dataclass

IMPORTED_FROM = "src.core.utils.performance_monitor"


@dataclass(frozen=True)
class Block:
    """One code block, and the heading that it stands under."""

    section: str
    code: str


BLOCKS = (
    Block(
        "Basic Setup",
        """\
from src.core.utils.performance_monitor import setup_performance_monitoring

# Setup monitoring
monitor = await setup_performance_monitoring(
    enable_prometheus=True,
    prometheus_port=8000,
    collection_interval_seconds=1.0
)

# Create orchestrator with monitoring enabled
orchestrator = Orchestrator(
    name="MyOrchestrator",
    enable_performance_monitoring=True
)

# The orchestrator will automatically register agents with the monitor
""",
    ),
    Block(
        "Manual Agent Registration",
        """\
from src.core.utils.performance_monitor import get_monitor

# Get the global monitor instance
monitor = get_monitor(create_if_none=True)

# Register an agent
monitor.add_agent(my_agent)

# Remove an agent when done
monitor.remove_agent(my_agent.agent_id)
""",
    ),
    Block(
        "Measuring Custom Operations",
        """\
from src.core.utils.performance_monitor import get_monitor

monitor = get_monitor()

# Use the context manager to measure operation time
with monitor.measure_execution_time(agent_id, "custom_operation"):
    # Perform the operation
    result = await perform_complex_operation()
""",
    ),
)
