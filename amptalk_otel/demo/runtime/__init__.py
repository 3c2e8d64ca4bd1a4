"""A small stand-in for the AMPTALK framework: same surface and same behaviour, quirks included."""

from .agents import Agent, SimpleAgent
from .communication import (
    CommunicationConfig,
    CommunicationManager,
    CommunicationMode,
    MessageTracker,
)
from .messages import Message, MessageMetadata, MessagePriority, MessageType
from .orchestrator import Orchestrator
from .state import MemoryOptimizer, StateManager, StorageType, create_state_manager
from .stats import AgentStats

__all__ = [
    "Agent",
    "AgentStats",
    "CommunicationConfig",
    "CommunicationManager",
    "CommunicationMode",
    "MemoryOptimizer",
    "Message",
    "MessageMetadata",
    "MessagePriority",
    "MessageTracker",
    "MessageType",
    "Orchestrator",
    "SimpleAgent",
    "StateManager",
    "StorageType",
    "create_state_manager",
]
