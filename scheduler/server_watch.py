"""News of one server, told to the control loop: what its agent shows, and whether its Triton is there.

The agent's watch and the connection to Triton each end the moment their process does, so nothing is polled while all is
well. A scheduler or an agent that starts anew learns of running replicas from the first node state and adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field, replace

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc, triton_control_pb2, triton_control_pb2_grpc
from serverless_triton.scheduler.admission import Exactness, ReplicaId
from serverless_triton.scheduler.cluster import ReplicaState, ServerState
from serverless_triton.scheduler.control_loop import ControlLoop
from serverless_triton.scheduler.definitions import definition_of
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.leftovers import unload_leftovers
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.state.protocol import Leadership, StateError
from serverless_triton.scheduler.view import DeviceView, ModelView, Phase

logger = logging.getLogger(__name__)

RETRY_S = 0.1
SILENCE_S = 10.0  # an agent repeats its state every 2 s
ASK_AGAIN_S = 5.0
LIVE_TIMEOUT_S = 15.0
# A new agent hears from workers and stubs within this time; what it does not show before is not dead.
SETTLE_S = 2.0
UNKNOWN_PATIENCE_S = 60.0  # a replica of a model that the repository does not have is ended after that
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(slots=True)
class ServerWatch:
    """Runs until cancelled."""

    loop: ControlLoop
    server: ServerState
    agent_address: str
    leadership: Leadership
    links: NodeLinks = field(default_factory=NodeLinks)
    _seen_agent: bool = False
    _settled: bool = True
    _refused: bool = False
    _unknown_since_s: dict[ReplicaId, float] = field(default_factory=dict)
    _state: agent_pb2.NodeState | None = None
    _timers: list[asyncio.TimerHandle] = field(default_factory=list)

    async def run(self) -> None:
        try:
            await asyncio.gather(self._watch_agent(), self._watch_triton())
        finally:
            self._stop_timers()

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    # The agent

    async def _watch_agent(self) -> None:
        while True:
            async with self.links.channel(self.agent_address, CHANNEL_OPTIONS) as channel:
                try:
                    await self._follow(channel)
                except (asyncio.TimeoutError, StateError):
                    pass
                except grpc.aio.AioRpcError as error:
                    self._tell_refusal("agent", error)
            self._set_agent(False)
            await asyncio.sleep(RETRY_S)

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        """Until the agent ends, or says nothing for longer than its heartbeats leave between them."""
        agent = agent_pb2_grpc.NodeAgentStub(channel)
        call = agent.Watch(agent_pb2.WatchRequest(), metadata=self.links.agent_metadata)
        while state := await asyncio.wait_for(call.read(), SILENCE_S):
            if not self.server.agent_up:
                await self._outrank(state)
                await self._take_lead(channel)
                self._greet(state)
            self._take_over(state)

    async def _outrank(self, state: agent_pb2.NodeState) -> None:
        """What the agent has seen before we came is over. Raises NotLeading where it is our leadership that is over."""
        if state.highest_epoch >= self.loop.epoch and not self._seen_agent:
            self.loop.epoch = await self.leadership.rise_above(state.highest_epoch)

    async def _take_lead(self, channel: grpc.aio.Channel) -> None:
        """From now on it refuses those before us; those after us have it refuse us."""
        control = triton_control_pb2_grpc.TritonControlStub(channel)
        request = triton_control_pb2.LeadRequest(epoch=self.loop.epoch)
        await control.Lead(request, metadata=self.links.agent_metadata, timeout=SILENCE_S)

    def _greet(self, state: agent_pb2.NodeState) -> None:
        if self._seen_agent:
            self._settled = False
            self._stop_timers()  # of an earlier restart: its end would judge this agent too soon
            self._timers = [asyncio.get_running_loop().call_later(SETTLE_S, self._settle)]
            for replica in self.loop.cluster.on_server(self.server.name):
                replica.shown_from_version = 0  # the new agent counts anew
        self._seen_agent = True
        self._set_agent(True)

    def _settle(self) -> None:
        self._settled = True
        if self._state is not None:
            self._take_over(self._state)

    def _set_agent(self, up: bool) -> None:
        if self.server.agent_up != up:
            logger.info("agent_%s server=%s", "up" if up else "away", self.server.name)
            self.server.agent_up = up
            self.loop.cluster.changed(server=self.server.name)

    def _take_over(self, state: agent_pb2.NodeState) -> None:
        self._state = state
        server = self.server
        server.node_version, server.workers_ready = state.version, state.workers_ready
        server.device_memory_bytes, server.dram_bytes = state.device_memory_bytes, state.dram_bytes
        server.device_holds_weights = state.device_holds_weights
        server.devices = tuple(DeviceView(id=one.id, memory_bytes=one.memory_bytes) for one in state.devices)
        server.in_dram = frozenset(image.checkpoint for image in state.images)
        server.on_ssd = frozenset(state.copies)
        for tier, told in (("ssd", state.ssd_bytes_per_second), ("remote", state.remote_bytes_per_second)):
            self.loop.cluster.calibration.suppose_bandwidth(server.name, tier, told)
        server.worker_pids = {ReplicaId(replica.id): replica.worker_pid for replica in state.replicas}
        server.stub_pids = {ReplicaId(replica.id): replica.stub_pid for replica in state.replicas}
        for shown in state.replicas:
            if not _is_parked(shown):
                self.loop.departures.again(server.name, ReplicaId(shown.id), shown.model)
        self._adopt(state)
        parked = [one for one in state.replicas if _is_parked(one)]
        self.loop.news.parked(
            server,
            {ReplicaId(one.id): one.model for one in parked},
            {ReplicaId(one.id): one.stub_private_bytes for one in parked},
            settled=self._settled,
        )
        if self._settled:
            self._bury(state)
        self.loop.cluster.changed(server=self.server.name)
        self.loop.dispatch()

    def _adopt(self, state: agent_pb2.NodeState) -> None:
        there = {replica.id for replica in state.replicas}
        self._unknown_since_s = {name: since_s for name, since_s in self._unknown_since_s.items() if name in there}
        for shown in state.replicas:
            replica_id = ReplicaId(shown.id)
            if shown.phase == agent_pb2.READY:
                self.loop.news.shown_ready(replica_id, exactness_of(shown))
            if _is_parked(shown) or self.loop.news.knows(replica_id):
                continue
            try:
                model = self._model_of(replica_id, shown.model)
            except SchedulerError as error:
                logger.warning("replica_unknown server=%s replica=%s error=%s", self.server.name, shown.id, error)
                self._end_unknown(replica_id, shown.model)
                continue
            self.loop.news.adopt(
                ReplicaState(
                    id=replica_id,
                    model=model,
                    server=self.server.name,
                    phase=Phase.READY if shown.phase == agent_pb2.READY else Phase.LOADING,
                    lost=asyncio.get_running_loop().create_future(),
                    idle_since_s=self.loop.clock(),
                    exactness=exactness_of(shown),
                )
            )

    def _end_unknown(self, replica: ReplicaId, model: str) -> None:
        """Its model went while no scheduler was there to see it. Not at once: the repository may come late."""
        now_s = self.loop.clock()
        if now_s - self._unknown_since_s.setdefault(replica, now_s) >= UNKNOWN_PATIENCE_S:
            del self._unknown_since_s[replica]
            self.loop.departures.disown(self.server.name, replica, model)

    def _model_of(self, replica: ReplicaId, name: str) -> ModelView:
        """By the definition that the replica carries; of a version that nobody knows where that is gone."""
        newest, carried = self.loop.order_of(name).view, definition_of(replica)
        versions = [newest, *(self.loop.order_of(name, version).view for version in sorted(newest.others))]
        known = [view for view in versions if carried in ("", view.definition)]
        return known[0] if known else replace(newest, definition=carried, version="")

    def _bury(self, state: agent_pb2.NodeState) -> None:
        shown = {replica.id for replica in state.replicas if not _is_parked(replica)}
        for replica in self.loop.cluster.on_server(self.server.name):
            if replica.model.foreign:
                continue  # an agent knows nothing of it
            due = (replica.phase is Phase.READY or replica.adopted) and state.version >= replica.shown_from_version
            if due and replica.id not in shown:
                self.loop.news.lose(replica, "its worker or stub died")

    # Triton

    async def _watch_triton(self) -> None:
        async with self.links.channel(self.server.grpc_address, CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while True:
                state = channel.get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY and not await self._is_live(stub):
                    self._set_triton(False)
                    await asyncio.sleep(RETRY_S)
                    continue
                if state is grpc.ChannelConnectivity.READY and not self.server.triton_up:
                    await unload_leftovers(self.loop.effects, self.server.name)
                self._set_triton(state is grpc.ChannelConnectivity.READY)
                # Asked again at times: a stopped process keeps its sockets.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(channel.wait_for_state_change(state), ASK_AGAIN_S)

    async def _is_live(self, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> bool:
        """Live, not ready: Triton is not ready while it loads any model, and serves the others all the same."""
        request, metadata = service_pb2.ServerLiveRequest(), self.links.triton_metadata
        try:
            return bool((await stub.ServerLive(request, timeout=LIVE_TIMEOUT_S, metadata=metadata)).live)
        except grpc.aio.AioRpcError as error:
            self._tell_refusal("triton", error)
        return False

    def _tell_refusal(self, part: str, error: grpc.aio.AioRpcError) -> None:
        """Once: a wrong secret does not become right by asking again."""
        details = error.details() or ""
        if not self._refused and (error.code() is grpc.StatusCode.UNAUTHENTICATED or "restricted" in details):
            self._refused = True
            logger.error("%s_refuses server=%s reason=%r", part, self.server.name, details)

    def _set_triton(self, up: bool) -> None:
        if self.server.triton_up == up:
            return
        logger.info("triton_%s server=%s", "up" if up else "down", self.server.name)
        self.server.triton_up = up
        self.loop.cluster.changed(server=self.server.name)
        if not up:
            for replica in self.loop.cluster.on_server(self.server.name):
                self.loop.news.lose(replica, f"server {self.server.name} went down")
        self.loop.dispatch()


def exactness_of(told: agent_pb2.Replica | agent_pb2.StartReply) -> Exactness | None:
    if not told.HasField("exactness"):
        return None
    said = told.exactness
    return Exactness(kind=said.kind, reason=said.reason, contract=said.contract)


def _is_parked(shown: agent_pb2.Replica) -> bool:
    return shown.phase == agent_pb2.PARKED
