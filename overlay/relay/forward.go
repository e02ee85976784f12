package relay

// to is what becomes of a run of datagrams.
type to struct {
	leg *leg  // where it goes; nil: nowhere
	why event // none, or why it is dropped
	// control marks a control message, which is handled rather than forwarded.
	control bool
	// guest marks WireGuard's datagrams to this machine that come from no node.
	guest bool
	// probe marks probes between nodes: long ones must arrive in one piece.
	probe bool
}

// cut decides on the first datagram of a train of size bytes each, and returns
// for how many bytes from the start the decision holds. What is to be forwarded
// has the sender's label when it returns. from is the sender's seat; nil: it
// has none. It takes no lock and allocates nothing.
func cut(from *seat, train []byte, size int) (n int, d to) {
	first := train[:min(size, len(train))]
	d = decide(from, first)
	n = len(first)
	if d.guest {
		for n < len(train) && isGuest(train[n:min(n+size, len(train))]) {
			n = min(n+size, len(train))
		}
		return n, d
	}
	if d.leg == nil { // each is counted or handled by itself
		return n, d
	}
	label := labelOf(first)
	stamp(first, from.label)
	for n < len(train) {
		next := train[n:min(n+size, len(train))]
		if len(next) < headerSize || labelOf(next) != label || !shaped(next[0], len(next)) || (next[0] == kindProbe) != d.probe {
			break
		}
		stamp(next, from.label)
		n += len(next)
	}
	return n, d
}

// decide says where one datagram goes.
func decide(from *seat, b []byte) to {
	if len(b) < headerSize {
		return to{why: dropShape}
	}
	switch b[0] {
	case kindControl:
		return to{control: true}
	case dataInitiation, dataResponse, dataCookie, dataTransport, kindProbe:
	default:
		return to{why: dropKind}
	}
	if !shaped(b[0], len(b)) {
		return to{why: dropShape}
	}
	if from == nil {
		return to{why: dropNoSession, guest: isGuest(b)}
	}
	var s *seat
	if l := labelOf(b); l == 0 {
		s = from.network.own.Load()
	} else {
		s = from.network.labels.get(l)
	}
	switch {
	case s == nil:
		return to{why: dropNoPeer}
	case s == from: // or it would come back, and be sent again
		return to{why: dropSelf}
	}
	l := s.leg.Load()
	if l == nil {
		return to{why: dropNoPeer}
	}
	return to{leg: l, probe: b[0] == kindProbe}
}

// isGuest reports whether a datagram is plain WireGuard, for this machine's own
// device: a node names its peers by labels.
func isGuest(b []byte) bool {
	return len(b) >= headerSize && labelOf(b) == 0 && b[0] >= dataInitiation && b[0] <= dataTransport && shaped(b[0], len(b))
}
