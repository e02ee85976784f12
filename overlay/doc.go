// Package overlay makes this machine match its map.
//
// A [Node] is one machine's membership in one network. It enrols once with an
// invite, keeps its keys and its last map in a state directory, and from then
// on does the same thing over and over: the coordinator (package coord) streams
// a map, plan turns map and machine into what should be true here, and apply
// hands the parts of the plan to those who make them true: routes and sysctls
// to package routing, netfilter chains to package nat, WireGuard peers to
// package tunnel, labels and relays to package underlay. Nothing else changes
// the machine, so what plan prints is what happens.
//
// A [Hub] is what `overlayd relay` runs: a relay and a Node of its own in one
// process, on one UDP and one TCP port, and on the first machine of a network the
// coordinator. A further relay gets all it needs from the coordinator as its Node
// does: it offers its address, its TLS key's pin and the secret that passes are
// made with when it joins, and its map names the passes that it has to refuse. So
// it serves from the first moment of a start, also when the coordinator is away.
//
// # Who owns what
//
// Node.Run starts every goroutine and returns when all have returned. One of
// them, the reconciler, is the only one that touches the kernel; the others
// tell it that something changed. Status is computed on demand from the same
// values that the reconciler used.
//
// # Without root
//
// With Options.Userspace the kernel is left alone, and a netstack.Stack does its
// part: it is the device under the tunnel, the sockets of DialContext and Listen,
// and on a gateway what connects to the LAN. The plan is made in the same way, and
// only what it says of routes, rules and chains has no place to become true. A
// network that the machine is on itself wins there, too: it is not reached
// through the overlay.
//
// # Who may come in
//
// The map says what this node lets in. Its rules are in force when the map has
// been heard, before anything else is done with it: enforcer gives them to a
// filter (package filter) that package tunnel asks about every packet, and both
// ends of the flows that they end are told, before the peers change. The
// coordinator hears at once when rules and peers are those of a map, and how many
// flows that ended. Grants end by this machine's clock, looked at four times a
// second, and whose key expires leaves the map at that moment by the same clock,
// whether the coordinator is there or not. A map whose rules cannot be used leaves
// the old ones in force and is not acknowledged; without old ones nobody is let in.
// A map without any is of a coordinator from before there were policies: then
// nothing is refused, and status warns.
//
// What this side begins to where no peer is, the filter refuses as whoever received
// it would. So the networks of which this node may reach nothing (the map's Closed)
// are led into the tunnel too, by the same routes: by the default route nobody
// would answer. Where somebody would, nothing is led: networks that are not private,
// that this machine is on a part of, or that its name server, proxy or relay is in.
// A member that is revoked while it runs goes on refusing what it led to, until it
// stops.
//
// After a start the rules of the last map are in force before there is an
// interface. A node that lets anybody in asks the coordinator before it makes
// one, for at most a second: it may have missed a revocation. Without an answer
// it works by what it knew.
//
// While the coordinator does not answer, the other relays are asked for the
// newest roll that they heard from it: who takes part, and which grants hold,
// signed (coord.Roll). What is on the map of a node and not on a newer roll is
// taken off, before the interface is made when a relay answers within that
// second, and later with its flows. A relay can keep a roll back, not forge one,
// and a roll adds nothing. What the policy became meanwhile is not on it.
//
// What the filter saw is recorded by the node that received it, and with a source
// that the kernel masqueraded as what the target sees: see FlowLine. Records are
// written behind the traffic's back (package record).
//
// # Ways in without routes
//
// Node.DialContext connects to a machine of the network or to a host behind a
// gateway, by sockets that the kernel ties to the interface, or by those of a
// stack in this process: there is no other way out for it. Names are those of
// nodes, then what the gateways' resolvers say (package resolver); a gateway
// answers whoever may reach anything behind it, by the rule that lets them, and
// tells only addresses of its approved prefixes. A [DialError] says why there is
// no connection; a policy's refusal is told from a closed port by a mark in the
// reset, which only this node's filter sees.
//
// By the local API programs of this machine get such a connection (`overlayd nc`):
// an HTTP upgrade, and then nothing but bytes. The proxy (package proxy) and the
// forwards (package forward) dial in the same way. They belong to the node, which
// opens them before it has a tunnel, and again while a port is taken.
//
// # A new WireGuard key
//
// Gateways and relays replace their WireGuard key every 30 days, other nodes when
// they were renewed, each when asked to (Rotate). The new key is kept first, then
// told to the coordinator with a report. The answer means that the peers are
// about to hear of it: then this node's tunnel takes the key, and the peers, with
// the next map, put it in the place of the old one and begin new sessions. What
// comes of the old sessions is still taken, and what is to be sent waits for some
// tens of milliseconds. Paths are the peers', not the keys': they stay. A peer
// that talks to this node while it is cut off from the coordinator would lose it,
// so the node waits for such peers, for a week at most. Who carries phones, which
// have its key in their files, keeps it.
//
// # Guests
//
// On the coordinator's machine people come in without overlayd: by the jump host
// (package jump) and by published ports (package publish). guests dials for both,
// each time from the seat of the person whose connection it is, after it has asked
// the policy and whether the receiver is there; the receiver's filter has the last
// word. It records what was made with the address that it came from, and ends what
// the coordinator's latest commit allows no more, before that commit returns to
// who asked for it.
//
// # When the world changes
//
// Nothing that was proved before counts when this machine's addresses or default
// routes are others than before, or when its clocks show that this process stood
// still: asleep with the machine, or frozen in its cgroup. Then the reconciler has
// every session and path prove itself, WireGuard's sessions made anew that were
// alive when the sleep began, and the coordinator asked, and dialed again if it
// does not answer within a second. The UDP sockets are bound to no address, so
// they need not be opened anew for that.
//
// # Files
//
// In the state directory, mode 0700, files 0600: node.json (keys, enrolment),
// map.pb (the last map, used when the coordinator cannot be reached at start),
// journal.json (what the machine had before we changed it), flows.jsonl (who came
// in), ways.json (proxy and forwards, with a hash of the proxy's password), end.json
// (why the last daemon ended by itself, for status), lock
// (flock: one daemon per directory) and, on a relay's machine, hub.json (the
// relay's keys) and devices.json (where each stock WireGuard last was, which is
// told of a restart), on the coordinator's coord.db, control.jsonl (who changed what),
// ssh_host_ed25519_key (the jump host's) and acme (a directory of certificates). Every
// file but the records is written to a temporary name, synced and
// renamed.
package overlay
