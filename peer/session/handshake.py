"""Handshakes: two neighbors prove their keys, compare what they must have in common, and agree from
which round on they use their edge.

Of two neighbors the one whose name sorts first proposes a round, the other answers with that round
or a later one, and both keep to it.
"""

from __future__ import annotations

import secrets

from peer import codec
from peer.errors import Refused
from peer.identity.keys import Identity, verify_welcome
from peer.membership import Presence
from peer.message import Peer
from peer.session.interfaces import Witness
from peer.session.peers import LocalProgress, PeerTable
from peer.transport import Link
from peer.v1 import peer_pb2 as pb

CALL_SECONDS = 5.0
"""A control call that takes longer has failed; the next one follows."""


class Handshakes:
    """Both ends of them: `propose` and `answer`."""

    def __init__(
        self,
        table: PeerTable,
        progress: LocalProgress,
        witness: Witness,
        identity: Identity | None,
        version: str,
    ) -> None:
        """`identity` proves this node's key; None on transports that prove nothing. `version`: of
        the software, for people."""
        self.table, self.progress, self.witness = table, progress, witness
        self.identity, self.version = identity, version

    def is_due(self, peer: Peer) -> bool:
        """A handshake is due: to prove who is there, or to agree on the edge."""
        return not self.table.states[peer].proven or self._must_propose(peer)

    def _must_propose(self, peer: Peer) -> bool:
        """It is for this node to propose an edge to this neighbor, and there is none."""
        table = self.table
        neighbor = table.membership.neighbors[peer]
        none = neighbor.presence in (Presence.UNKNOWN, Presence.LOST)
        if table.me > peer or not none:
            return False
        return not table.membership.kept_off(peer, neighbor.incarnation, table.now)

    async def propose(self, peer: Peer, link: Link) -> None:
        """Shakes hands with a neighbor over this link.

        Raises:
            Refused: the neighbor refuses, or could not prove its key.
            Unreachable: the call failed.
        """
        table, state = self.table, self.table.states[peer]
        hello = self._hello(peer)
        answer = await link.call("Handshake", codec.encode(hello), CALL_SECONDS)
        welcome = codec.decode(pb.Welcome, answer)
        self._check(peer, hello, welcome)
        state.spki = welcome.spki
        state.proven = state.link is link
        table.note_unreached(peer, welcome.unreached)
        table.changed.notify()
        self.witness.challenge(welcome.remembered)
        self.witness.observe(peer, welcome.head)
        if hello.propose and welcome.from_round > self.progress.round:
            self._agree(peer, welcome, welcome.from_round, confirmed=True)

    def _hello(self, peer: Peer) -> pb.Hello:
        table = self.table
        hello = pb.Hello(
            roster=table.parameters.roster,
            nonce=secrets.token_bytes(codec.DIGEST),
            digests=table.parameters.digests,
            round=self.progress.round,
            from_round=self.progress.earliest,
            head=self.witness.current(),
            version=self.version,
            propose=self._must_propose(peer),
            order=table.next_order(),
            own_code=table.parameters.own_code,
        )
        table.address(hello, peer)
        return hello

    def _check(self, peer: Peer, hello: pb.Hello, welcome: pb.Welcome) -> None:
        """Raises Refused: the neighbor refuses, is another node, or an earlier process."""
        state = self.table.states[peer]
        if welcome.code != pb.CODE_OK:
            why = welcome.detail or codec.sentence(welcome.code)
            if welcome.unreached:
                raise Refused(f"{peer} can't reach this node: {welcome.unreached}", welcome.code)
            raise Refused(f"{peer} refuses {self.table.me}: {why}", welcome.code)
        if self.identity is not None:
            verify_welcome(
                welcome.spki,
                welcome.signature,
                nonce=hello.nonce,
                client_id=hello.sender,
                run=hello.run,
                expected_id=state.id,
            )
        if welcome.incarnation < state.incarnation:
            raise Refused(f"{peer} answered as an earlier process of its own.", pb.CODE_INCARNATION)

    def answer(self, caller: str | None, hello: pb.Hello) -> pb.Welcome:
        """The answer to a neighbor's handshake. Nothing is signed for anybody else, nor for another
        run.

        Raises:
            Malformed: the caller is no neighbor, or claims to be somebody else.
        """
        peer = self.table.peer(caller, hello.sender)
        state = self.table.states[peer]
        if hello.nonce == state.nonce:
            return state.welcome  # the same call, delivered twice
        self._compare_software(peer, hello)
        code, detail = self._refusal(peer, hello)
        reply = pb.Welcome(
            detail=detail,
            incarnation=self.table.incarnation,
            version=self.version,
            unreached=codec.printable(state.unreached),
        )
        reply.code = code
        if code != pb.CODE_OK:
            if state.proven or code != pb.CODE_NOT_READY:  # or the dialing says more
                self.table.note_trouble(peer, detail, code)
            self.table.observer.refused(peer, code)
            return reply
        self._accept(peer, hello, reply)
        state.nonce = hello.nonce
        state.welcome = reply
        state.asked = (hello.incarnation, hello.order)
        return reply

    def _accept(self, peer: Peer, hello: pb.Hello, reply: pb.Welcome) -> None:
        """Completes the answer to a handshake that nothing speaks against."""
        table, state = self.table, self.table.states[peer]
        if hello.roster > table.parameters.roster:
            table.observer.newer_roster(peer, hello.roster)
        if self.identity is not None:
            reply.spki = self.identity.spki
            reply.signature = self.identity.sign_welcome(
                hello.nonce, state.id, table.ids[table.me], table.parameters.run
            )
        reply.remembered.CopyFrom(self.witness.observe(peer, hello.head))
        reply.head.CopyFrom(self.witness.current())
        reply.round = self.progress.round
        reply.order = table.next_order()
        reply.from_round = max(hello.from_round, self.progress.earliest)
        if hello.incarnation > table.membership.neighbors[peer].incarnation:
            table.membership.restarted(peer, hello.incarnation)
            table.observer.presence(peer, False)
            table.changed.notify()
        if hello.propose and peer < table.me:
            self._agree(peer, hello, reply.from_round, confirmed=False)
        if self.is_due(peer):
            state.wake.notify()

    def _compare_software(self, peer: Peer, hello: pb.Hello) -> None:
        """What two nodes of a run may differ in, but should not."""
        parameters, observer = self.table.parameters, self.table.observer
        if hello.run == parameters.run:
            other = hello.version if hello.version != self.version else ""
            observer.software(peer, other, hello.own_code == parameters.own_code)

    def _refusal(self, peer: Peer, hello: pb.Hello) -> tuple[pb.Code, str]:
        """The first thing that speaks against the handshake, as (code, sentence)."""
        code = self.table.refusal(hello)
        if code == pb.CODE_PROTOCOL:
            here = f"{self.table.me}: {codec.PROTOCOL}, peerpoise {self.version}"
            there = f"{peer}: {hello.protocol}, peerpoise {hello.version}"
            return code, codec.printable(f"{codec.sentence(code)} ({here}; {there}.)")
        if code not in (pb.CODE_OK, pb.CODE_RUN):
            return code, codec.sentence(code)
        code, detail = self.table.parameters.difference(hello, self.table.me, peer)
        if code != pb.CODE_OK:
            return code, detail
        return self._not_now(peer, hello)

    def _not_now(self, peer: Peer, hello: pb.Hello) -> tuple[pb.Code, str]:
        """Why the edge can't be agreed on at present, as (code, sentence)."""
        table, state = self.table, self.table.states[peer]
        if hello.incarnation < table.membership.neighbors[peer].incarnation:
            return pb.CODE_INCARNATION, codec.sentence(pb.CODE_INCARNATION)
        if (hello.incarnation, hello.order) <= state.asked:
            return pb.CODE_DUPLICATE, "A later handshake of the same process was answered already."
        if not hello.propose:
            return pb.CODE_OK, ""
        if why := table.membership.kept_off(peer, hello.incarnation, table.now):
            return pb.CODE_NOT_READY, why
        if not state.proven:
            state.wake.notify()
            why = state.unreached or "The caller could not be dialed back yet."
            return pb.CODE_NOT_READY, codec.printable(why)
        return pb.CODE_OK, ""

    def _agree(
        self, peer: Peer, message: pb.Hello | pb.Welcome, live_from: int, *, confirmed: bool
    ) -> None:
        table = self.table
        table.states[peer].renew(message.incarnation)
        table.membership.agree(
            peer,
            live_from=live_from,
            incarnation=message.incarnation,
            round=message.round,
            order=message.order,
            now=table.now,
            confirmed=confirmed,
        )
        table.observer.presence(peer, True)
        table.changed.notify()
