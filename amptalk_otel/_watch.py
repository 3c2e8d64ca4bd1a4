"""Who is watched for whom. Wrappers are on an object once, however many ask; each asker reports to its bridge."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import AgentsToRead, Identity
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._forks import lock_of
from amptalk_otel._guard import complain, guarded
from amptalk_otel._hooks._agent import AgentHook, identify
from amptalk_otel._hooks._orchestrator import OrchestratorHook
from amptalk_otel._hooks._state import StateManagerHook, User, hook_state_manager
from amptalk_otel._labels import clean
from amptalk_otel._ledger import Ledger
from amptalk_otel._names import names_of
from amptalk_otel._reading import OrchestratorReading, read_operations, read_orchestrator
from amptalk_otel._recorder import OperationRecorder, Reported, StateOwner
from amptalk_otel._sources import Breathe, Bridge
from amptalk_otel._tracing._tracer import MessageTracer, first_tracer
from amptalk_otel.adapters import AgentAdapter, adapter_for, tells_message_type_as_it_is
from amptalk_otel.config import Config

_RETIRED_AT_ONCE = 50

_lock = lock_of(sys.modules[__name__], threading.RLock)
_agents: dict[int, _SharedAgent] = {}  # by id of the agent
_traced: weakref.WeakValueDictionary[str, _SharedAgent] = weakref.WeakValueDictionary()  # by `agent.id`: the last of it
_orchestrators: dict[int, OrchestratorHook] = {}  # by id of the orchestrator


class _SharedAgent:
    """The hook on one agent, and the watches that share it."""

    __slots__ = ("__weakref__", "_key", "hook", "watches")

    def __init__(
        self,
        agent: Any,
        recorder: AgentRecorder,
        adapter: AgentAdapter,
        router: OrchestratorHook | None,
    ) -> None:
        self.hook = AgentHook(agent, recorder, adapter, router)
        self.watches: tuple[Watch, ...] = ()
        self._key = id(agent)

    def join(self, watch: Watch) -> None:
        self.watches = (*self.watches, watch)
        self.choose_tracer()

    def choose_tracer(self) -> None:
        """The first that any of the watches brings makes the spans."""
        tracer = first_tracer(self.watches)
        self.hook.trace(tracer)
        if tracer is not None:
            _traced[self.hook.agent_id] = self

    def leave(self, watch: Watch) -> bool:
        """Returns whether nobody watches the agent any more."""
        self.watches = tuple(other for other in self.watches if other is not watch)
        self.choose_tracer()
        if not self.watches and _agents.get(self._key) is self:
            del _agents[self._key]
        return not self.watches


def is_tracing() -> bool:
    """Whether there are agents of which anybody makes spans."""
    return len(_traced) > 0


def traced_as(agent_id: str, agent: Any = None) -> tuple[MessageTracer | None, str | None]:
    """What makes the spans of an agent, whoever brings it, and the agent's name. Takes no lock.

    Of this very agent, or where the caller has none, of the last that is traced under this id.
    """
    shared = _traced.get(agent_id) if agent is None else _agents.get(id(agent))
    return (first_tracer(shared.watches), shared.hook.agent_name) if shared is not None else (None, None)


class Watch:
    """The agents, orchestrator and state managers of one instrumentation. Holds none of them alive."""

    def __init__(
        self,
        bridge: Bridge,
        config: Config,
        *,
        machine: bool = True,
        agents: bool = True,
        tracer: MessageTracer | None = None,
    ) -> None:
        """`machine` and `agents` tell whether machine and process, and agents with all they have, are reported."""
        self._bridge = bridge
        self._places: Bridge | Ledger = bridge if agents else Ledger()  # who is in which series
        self.tracer = tracer
        self._config = config
        self._reports_machine = machine
        self._reports_agents = agents
        self.operations: OperationRecorder = OperationRecorder(max_agents=config.max_agents)
        self._orchestrator: OrchestratorHook | None = None
        self._state_managers: list[tuple[StateManagerHook, User]] = []
        self._targets: list[weakref.ref[Any]] = []  # the orchestrator and the state managers
        self._agents: dict[int, _SharedAgent] = {}  # by id of the agent
        self._departed: OrderedDict[str, tuple[AgentHook, float]] = OrderedDict()  # by agent's id: and when it left us
        self._leaving: list[AgentHook] = []  # those that retire as soon as they are done
        self._look_at = 1  # how many of these there are when we next look for such that are done
        self._released = False
        bridge.report(self.operations)
        bridge.add(self.snapshot)

    def trace(self, tracer: MessageTracer) -> bool:
        """Make spans by `tracer` from now on; False where there is another already, which stays."""
        with _lock:
            if self._released or self.tracer is not None:
                return self.tracer is not None and self.tracer.provider is tracer.provider
            for _hook, user in self._state_managers:
                user.tracer = tracer
            self.tracer = tracer
            for shared in self._agents.values():
                shared.choose_tracer()
            if self._orchestrator is not None:
                self._orchestrator.choose_tracer()
            return True

    # -- coming and going ----------------------------------------------------------------------------

    def watch_orchestrator(self, orchestrator: Any) -> None:
        """Watch an orchestrator, its agents, and those that come later."""
        with _lock:
            hook = _orchestrators.get(id(orchestrator))
            if hook is None or not hook.is_for(orchestrator):
                hook = _orchestrators[id(orchestrator)] = OrchestratorHook(orchestrator)
                weakref.finalize(orchestrator, _orchestrators.pop, id(orchestrator), None).atexit = False
            self._orchestrator = hook
            self._targets.append(weakref.ref(orchestrator))
            if self._reports_agents:
                self._bridge.report(hook.recorder)
            hook.join(self)

    def watch_state_manager(self, manager: Any) -> None:
        """Watch a state manager; one that a watched agent has is reported with the agent instead."""
        with _lock:
            user = User(StateOwner(names_of("state managers")), self.tracer)
            hook = hook_state_manager(manager, user)
            if isinstance(hook.recorder.owner, AgentRecorder):
                hook.release(user)
                return
            user.owner = hook.recorder.owner  # that of the first who watches it for itself
            self._state_managers.append((hook, user))
            self._targets.append(weakref.ref(manager))
            self._bridge.report(user.owner)

    def agent_registered(self, agent: Any) -> None:
        """Watch an agent from now on. Harmless the second time."""
        with _lock:
            mine = self._agents.get(id(agent))
            if self._released or (mine is not None and mine.hook.agent_ref() is agent):
                return
            if mine is not None:  # the agent that was at this address is gone
                self._let_go(self._agents.pop(id(agent)))
            adapter = adapter_for(agent)
            if adapter is None:
                kind = type(agent).__qualname__
                complain(f"agent {kind}", "%s can't be watched: it is of no kind that an adapter knows", kind)
                return
            if not self._is_wanted(agent, adapter):
                return
            self._agents[id(agent)] = shared = self._share(agent, adapter)
            shared.join(self)

    def _share(self, agent: Any, adapter: AgentAdapter) -> _SharedAgent:
        """The agent's hook, reported to our bridge.

        An agent that comes back, or another one of its id and name, goes on with the former recorder:
        no counter ever falls.
        """
        agent_id, agent_name = identify(adapter, agent)
        former = self._departed_of(agent_id, agent_name)
        shared = _agents.get(id(agent))
        if shared is None or shared.hook.agent_ref() is not agent:
            recorder = former if former is not None else self._new_recorder(agent, adapter)
            shared = _agents[id(agent)] = _SharedAgent(agent, recorder, adapter, self._orchestrator)
            recorder.come_back()
        if former is not None:
            del self._departed[agent_id]
        recorder = shared.hook.recorder
        if former is not recorder:  # else it is reported since before it left
            if former is not None:
                self._retire([former])
            self._places.report(recorder)
        return shared

    def _departed_of(self, agent_id: str, agent_name: str) -> AgentRecorder | None:
        hook, _left_at = self._departed.get(agent_id, (None, 0.0))
        return hook.recorder if hook is not None and hook.agent_name == agent_name else None

    def _new_recorder(self, agent: Any, adapter: AgentAdapter) -> AgentRecorder:
        orchestrator_name = self._orchestrator.recorder.name if self._orchestrator is not None else None
        own = (*self._grouped(agent, adapter), orchestrator_name)
        agent_id, agent_name, _ = self._places.series_for(own, self._config.max_agents)
        return AgentRecorder(
            agent_id,
            agent_name,
            type_of=adapter.message_type,
            type_is_enum=tells_message_type_as_it_is(adapter),
            payload_of=adapter.payload,
            orchestrator_name=orchestrator_name,
            size_sample_every=self._config.message_size_sample_every,
            names=names_of((agent_id, agent_name, orchestrator_name)),
        )

    def _grouped(self, agent: Any, adapter: AgentAdapter) -> tuple[str, str]:
        """`agent.id` and `agent.name` of the series that an agent is in."""
        agent_id, agent_name = identify(adapter, agent)
        if self._config.agent_grouping == "id":
            return agent_id, agent_name
        group = agent_name if self._config.agent_grouping == "name" else clean(type(agent).__qualname__)
        return group, group

    def _is_wanted(self, agent: Any, adapter: AgentAdapter) -> bool:
        include, exclude = self._config.agents_include, self._config.agents_exclude
        if not include and not exclude:
            return True
        names = identify(adapter, agent)
        return (not include or _matches(names, include)) and not _matches(names, exclude)

    def agent_unregistered(self, agent: Any) -> None:
        """Let an agent go. Its last values stay for a while, so that the next scrape sees them."""
        with _lock:
            shared = self._agents.pop(id(agent), None)
            if shared is not None:
                self._let_go(shared)

    def _let_go(self, shared: _SharedAgent) -> None:
        hook = shared.hook
        if shared.leave(self):  # else others watch it still, and what we show until it retires is alive
            hook.let_go()
        former = self._departed.pop(hook.agent_id, None)
        if former is not None:
            self._leaving.append(former[0])
        if self._places.is_shared(hook.identity):  # nobody sees it go
            self._leaving.append(hook)
        else:
            self._departed[hook.agent_id] = hook, hook.recorder.clock()
        self._retire_those_gone()  # also where nobody reads

    def series_of(self, agent: Any) -> tuple[str, str] | None:
        """`agent.id` and `agent.name` of the series that an agent is in; None for one that is not watched."""
        shared = self._agents.get(id(agent))
        if shared is None or shared.hook.agent_ref() is not agent:
            return None
        return shared.hook.recorder.agent_id, shared.hook.recorder.agent_name

    # -- reading -------------------------------------------------------------------------------------

    def agents(self, breathe: Breathe = lambda: None) -> AgentsToRead:
        """Every agent, those included that left a short while ago. `breathe` is called after each reading."""
        self._forget_agents(breathe)
        with _lock:
            hooks = self._hooks()
        return AgentsToRead(hooks, breathe)

    def _hooks(self) -> list[AgentHook]:
        gone = [hook for hook, _left_at in self._departed.values()]
        return [shared.hook for shared in self._agents.values()] + gone + self._leaving

    def snapshot(self, breathe: Breathe = lambda: None) -> Snapshot:
        """Everything at this moment; the agents when somebody goes through them."""
        operations = read_operations(self.operations)
        if not self._reports_agents:
            self._forget_agents(breathe)
            return Snapshot(machine=self._reports_machine, operations=operations)
        reading = guarded("reading the orchestrator", self._read_orchestrator)
        states = (guarded("reading a state manager", hook.read_for, user) for hook, user in self._state_managers)
        return Snapshot(
            machine=self._reports_machine,
            operations=operations,
            agents=self.agents(breathe),
            orchestrators=(reading,) if reading is not None else (),
            states=tuple(state for state in states if state is not None),
        )

    def _read_orchestrator(self) -> OrchestratorReading | None:
        """One that is gone has no agents. What it counted stays as long as it is watched: others may be called so."""
        hook = self._orchestrator
        if hook is None:
            return None
        reading: OrchestratorReading | None = hook.read()
        return reading if reading is not None else read_orchestrator(hook.recorder, running=0, stopped=0)

    def _forget_agents(self, breathe: Breathe) -> None:
        """Agents that the program dropped without unregistering them, and those that are gone for long enough."""
        with _lock:
            for key, shared in list(self._agents.items()):
                if shared.hook.agent_ref() is None:
                    del self._agents[key]
                    self._let_go(shared)
        while self._leaving or self._departed:
            with _lock:
                self._look_at = 1
                if not self._retire_those_gone():
                    break
            breathe()
        with _lock:
            if self._is_left_behind():
                self.release()

    def _is_left_behind(self) -> bool:
        """Whether the program dropped all that we watch, and others go on telling of the machine and the process."""
        is_gone = bool(self._targets) and all(target() is None for target in self._targets)
        return is_gone and not self._hooks() and self._bridge.has_others(self.snapshot)

    def _retire_those_gone(self) -> bool:
        """Those whose time is up, in the order in which they left; and of the others, now and then, who is done.

        Not too many at a time: the event loop may wait for us. Returns whether there are more.
        """
        while self._departed:
            agent_id, (hook, left_at) = next(iter(self._departed.items()))
            if hook.recorder.clock() - left_at <= self._config.departed_agents_linger_s:
                break
            del self._departed[agent_id]
            self._leaving.append(hook)
        if len(self._leaving) < self._look_at:
            return False
        gone = set(islice((hook for hook in self._leaving if hook.is_quiet), _RETIRED_AT_ONCE))
        self._leaving = [hook for hook in self._leaving if hook not in gone]
        is_all = len(gone) < _RETIRED_AT_ONCE
        self._look_at = 2 * len(self._leaving) + 1 if is_all else 1
        self._retire([hook.recorder for hook in gone])
        return not is_all

    def _retire(self, recorders: Iterable[AgentRecorder]) -> None:
        """In one step with being forgotten, for those who read: under our lock."""
        for identity in self._places.retire(recorders):
            self._retire_operations(identity)

    def _retire_operations(self, identity: Identity) -> None:
        agent_id = identity[0]
        if self.operations.measures(agent_id) and all(hook.recorder.agent_id != agent_id for hook in self._hooks()):
            self._bridge.move(self.operations.retire(agent_id))

    # -- leaving -------------------------------------------------------------------------------------

    def release(self) -> None:
        """Take every wrapper off and every series away. Harmless the second time."""
        with _lock:
            if self._released:
                return
            self._released = True
            owners: list[Reported] = [self.operations]
            if self._reports_agents:
                owners += [hook.recorder for hook in self._hooks()]
                owners += [self._orchestrator.recorder] if self._orchestrator is not None else []
            for shared in self._agents.values():
                if shared.leave(self):
                    shared.hook.release()
            for manager_hook, user in self._state_managers:
                owners.append(user.owner)
                manager_hook.release(user)
            self._agents.clear()
            self._departed.clear()
            self._leaving.clear()
            self._release_orchestrator()
            self._bridge.remove(self.snapshot, owners)  # under our lock, as `_retire`

    def _release_orchestrator(self) -> None:
        hook = self._orchestrator
        if hook is not None and hook.leave(self):
            hook.release()
            for key in [key for key, other in _orchestrators.items() if other is hook]:
                del _orchestrators[key]


def _matches(names: tuple[str, str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)
