"""Who is watched for whom. Wrappers are on an object once, however many ask; each asker reports to its bridge."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from amptalk_otel._bridge import InstrumentsBridge
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._guard import guarded
from amptalk_otel._hooks._agent import AgentHook
from amptalk_otel._hooks._orchestrator import OrchestratorHook
from amptalk_otel._hooks._state import StateManagerHook, hook_state_manager
from amptalk_otel._labels import clean
from amptalk_otel._reading import AgentReading
from amptalk_otel._recorder import AgentRecorder, StateOwner
from amptalk_otel.config import Config

_lock = threading.RLock()
_agents: dict[int, _SharedAgent] = {}  # by id of the agent
_orchestrators: dict[int, OrchestratorHook] = {}  # by id of the orchestrator


class _SharedAgent:
    """The hook on one agent, and the watches that share it."""

    def __init__(self, agent: Any, recorder: AgentRecorder) -> None:
        self.hook = AgentHook(agent, recorder)
        self.watches: list[Watch] = []
        self._forget = weakref.finalize(agent, _agents.pop, id(agent), None)
        self._forget.atexit = False

    def leave(self, watch: Watch) -> bool:
        """Returns whether nobody watches the agent any more."""
        self.watches.remove(watch)
        if not self.watches:
            self._forget()
        return not self.watches


class Watch:
    """The agents, orchestrator and state managers of one instrumentation. Holds none of them alive."""

    def __init__(self, bridge: InstrumentsBridge, config: Config) -> None:
        self._bridge = bridge
        self._config = config
        self._orchestrator: OrchestratorHook | None = None
        self._state_managers: list[StateManagerHook] = []
        self._agents: dict[int, _SharedAgent] = {}  # by id of the agent
        self._departed: dict[str, AgentHook] = {}  # by agent.id
        self._released = False
        bridge.add(self.snapshot)

    # -- coming and going ----------------------------------------------------------------------------

    def watch_orchestrator(self, orchestrator: Any) -> None:
        """Watch an orchestrator, its agents, and those that come later."""
        with _lock:
            hook = _orchestrators.get(id(orchestrator))
            if hook is None or not hook.is_for(orchestrator):
                hook = _orchestrators[id(orchestrator)] = OrchestratorHook(orchestrator)
                weakref.finalize(orchestrator, _orchestrators.pop, id(orchestrator), None).atexit = False
            self._orchestrator = hook
            hook.join(self)

    def watch_state_manager(self, manager: Any) -> None:
        """Watch a state manager; one that a watched agent has is reported with the agent instead."""
        with _lock:
            hook = hook_state_manager(manager)
            if isinstance(hook.recorder.owner, AgentRecorder):
                hook.release()
                return
            self._state_managers.append(hook)
            self._bridge.report(hook.recorder.owner)

    def agent_registered(self, agent: Any) -> None:
        """Watch an agent from now on. Harmless the second time."""
        with _lock:
            mine = self._agents.get(id(agent))
            if self._released or (mine is not None and mine.hook.agent_ref() is agent):
                return
            shared = _agents.get(id(agent))
            if shared is None or shared.hook.agent_ref() is not agent:
                shared = _agents[id(agent)] = _SharedAgent(agent, self._recorder_for(agent))
            else:
                self._bridge.report(shared.hook.recorder)
            shared.watches.append(self)
            self._agents[id(agent)] = shared

    def _recorder_for(self, agent: Any) -> AgentRecorder:
        """A recorder that is reported; the former one, if an agent of this id and name left a short while ago."""
        agent_id, agent_name = clean(agent.agent_id), clean(agent.name)
        departed = self._departed.get(agent_id)
        if departed is not None and departed.recorder.agent_name == agent_name:
            del self._departed[agent_id]
            departed.recorder.come_back()
            return departed.recorder
        recorder = AgentRecorder(
            agent_id,
            agent_name,
            orchestrator_name=self._orchestrator.recorder.name if self._orchestrator is not None else None,
            size_sample_every=self._config.message_size_sample_every,
        )
        self._bridge.report(recorder)
        return recorder

    def agent_unregistered(self, agent: Any) -> None:
        """Let an agent go. Its last values stay for a while, so that the next scrape sees them."""
        with _lock:
            shared = self._agents.pop(id(agent), None)
            if shared is not None:
                self._let_go(shared)

    def _let_go(self, shared: _SharedAgent) -> None:
        recorder = shared.hook.recorder
        if not shared.leave(self):
            self._bridge.withdraw([recorder])
            return
        shared.hook.let_go()
        former = self._departed.get(recorder.agent_id)
        if former is not None:
            self._bridge.withdraw([former.recorder])
        self._departed[recorder.agent_id] = shared.hook

    # -- reading -------------------------------------------------------------------------------------

    def agents(self) -> list[AgentReading]:
        """A reading of every agent, those included that left a short while ago."""
        with _lock:
            self._let_go_dead_agents()
            retired = self._retire_departed_agents()
            hooks = [shared.hook for shared in self._agents.values()] + list(self._departed.values())
        self._bridge.withdraw(retired)
        readings = (guarded("reading an agent", hook.read) for hook in hooks)
        return [reading for reading in readings if reading is not None]

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""
        orchestrator = self._orchestrator
        reading = guarded("reading the orchestrator", orchestrator.read) if orchestrator is not None else None
        states = (guarded("reading a state manager", hook.read) for hook in self._state_managers)
        return Snapshot(
            agents=tuple(self.agents()),
            orchestrators=(reading,) if reading is not None else (),
            states=tuple(state for state in states if state is not None),
        )

    def _let_go_dead_agents(self) -> None:
        """Agents that the program dropped without unregistering them."""
        for key, shared in list(self._agents.items()):
            if shared.hook.agent_ref() is None:
                del self._agents[key]
                self._let_go(shared)

    def _retire_departed_agents(self) -> list[AgentRecorder]:
        retired = []
        for agent_id, hook in list(self._departed.items()):
            recorder = hook.recorder
            if recorder.away_s() > self._config.departed_agents_linger_s:
                del self._departed[agent_id]
                retired.append(recorder)
        return retired

    # -- leaving -------------------------------------------------------------------------------------

    def release(self) -> None:
        """Take every wrapper off and every series away. Harmless the second time."""
        with _lock:
            if self._released:
                return
            self._released = True
            self._bridge.remove(self.snapshot)
            owners: list[StateOwner] = [hook.recorder for hook in self._departed.values()]
            for shared in self._agents.values():
                owners.append(shared.hook.recorder)
                if shared.leave(self):
                    shared.hook.release()
            for manager_hook in self._state_managers:
                owners.append(manager_hook.recorder.owner)
                manager_hook.release()
            self._agents.clear()
            self._departed.clear()
            self._release_orchestrator()
        self._bridge.withdraw(owners)

    def _release_orchestrator(self) -> None:
        hook = self._orchestrator
        if hook is not None and hook.leave(self):
            hook.release()
            for key in [key for key, other in _orchestrators.items() if other is hook]:
                del _orchestrators[key]
