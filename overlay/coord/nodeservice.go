package coord

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
)

const (
	// maxRequest holds an enrolment with the most prefixes, ten times over.
	maxRequest = 64 << 10
	// requestTime is for sending a request, and for answering all but Watch.
	requestTime = 10 * time.Second
)

// nodeService is the Node service.
type nodeService struct{ *Server }

var _ api.NodeHandler = nodeService{}

// Handler serves the Node service, and the Admin service to those members who
// may call it, for the TLS port.
func (s *Server) Handler() http.Handler {
	path, h := api.NewNodeHandler(nodeService{s}, connect.WithReadMaxBytes(maxRequest), uncompressed)
	mux := http.NewServeMux()
	mux.Handle(path, hurried(h))
	path, h = s.adminRoute(false)
	mux.Handle(path, hurried(h))
	return mux
}

// hurried gives every call a time in which it has to be sent and answered.
func hurried(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		deadline := time.Now().Add(requestTime)
		rc.SetReadDeadline(deadline)  // an error means a test's recorder
		rc.SetWriteDeadline(deadline) // Watch moves it on
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), controllerKey{}, rc)))
	})
}

// uncompressed keeps the length of a message from telling of the secrets in it,
// and a gzip writer's megabyte from every stream; keys do not shrink anyway.
var uncompressed = connect.WithCompression("gzip", nil, nil)

type controllerKey struct{}

// controller returns the call's deadlines.
func controller(ctx context.Context) *http.ResponseController {
	return ctx.Value(controllerKey{}).(*http.ResponseController)
}

// refuse makes an error ready for the wire, and logs it when it is our own
// failure.
func (s *Server) refuse(call string, err error) error {
	if _, ok := AsProblem(err); !ok && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		s.o.Log.Error("call failed", "call", call, "err", err)
	}
	return wireError(err)
}

// caller returns the machine that makes a call.
func (s nodeService) caller(h http.Header) (key.MachinePublic, error) {
	token, err := bearerToken(h.Get("Authorization"))
	if err != nil {
		return key.MachinePublic{}, err
	}
	return verifyToken(token, s.audiences, s.o.Now())
}

// member returns the node that makes a call.
func (s nodeService) member(h http.Header) (*nodeRecord, error) {
	m, err := s.caller(h)
	if err != nil {
		return nil, err
	}
	if n := s.ledger.now().byMachine[m]; n != nil {
		return n, nil
	}
	return nil, errNotMember
}

// Enroll makes the caller a member.
func (s nodeService) Enroll(ctx context.Context, req *connect.Request[api.EnrollRequest]) (*connect.Response[api.EnrollResponse], error) {
	from := peerAddr(req.Peer().Addr)
	if wait := s.failures.Wait(from, s.o.Now()); wait > 0 {
		return nil, wireError(problem(KindDenied, "wait "+wait.Round(time.Second).String()+" and use a new link",
			"too many failed attempts to join from this address"))
	}
	resp, err := s.enrollCaller(ctx, req)
	if err != nil {
		if p, ok := AsProblem(err); ok && (p == errBadInvite || p.Kind == KindInvalid) {
			s.failures.Add(from, s.o.Now())
		}
		return nil, s.refuse("enroll", err)
	}
	return connect.NewResponse(resp), nil
}

func (s nodeService) enrollCaller(ctx context.Context, req *connect.Request[api.EnrollRequest]) (*api.EnrollResponse, error) {
	machine, err := s.caller(req.Header())
	if err != nil {
		return nil, err
	}
	want, err := enrollFromWire(req.Msg)
	if err != nil {
		return nil, err
	}
	var node nodeRecord
	id := newID("n", 11)
	known := s.ledger.now().byMachine[machine]
	change := s.ledger.change
	if known != nil && !want.Renew { // else an invite bounds it
		change = func(ctx context.Context, decide func(*snapshot) ([]Record, error)) error {
			return s.changeOwn(ctx, known, decide)
		}
	}
	ctx = withAct(ctx, act{who: "invite:" + want.Invite, from: peerAddr(req.Peer().Addr).String(), call: "Enroll"})
	err = change(ctx, func(snap *snapshot) (changes []Record, err error) {
		node, changes, err = snap.enroll(machine, want, id, s.o.Now().UTC())
		if err == nil { // only who is let in learns who else is at an address
			err = snap.checkOffer(s.o.Relay, machine, want.Relay)
		}
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	network := s.ledger.now().network
	addr := addrOf(network.Overlay, node.Label)
	if known == nil {
		s.o.Log.Info("node joined", "node", node.Name, "addr", addr, "role", string(node.Role), "invite", node.Invite)
	}
	return &api.EnrollResponse{
		NodeId: node.ID, Name: node.Name, Network: network.ID[:], Overlay: network.Overlay.String(),
		Label: node.Label, Addrs: []string{addr.String()}, Role: string(node.Role),
	}, nil
}

func enrollFromWire(m *api.EnrollRequest) (EnrollRequest, error) {
	r := EnrollRequest{Invite: m.Invite, Name: m.Name, Role: Role(m.Role), Renew: m.Renew}
	var err error
	if r.WireGuard, err = key.PublicFromBytes(m.Wireguard); err != nil {
		return r, problem(KindInvalid, "", "the WireGuard key is malformed")
	}
	if r.Advertise, err = parsePrefixes(m.Advertise); err != nil {
		return r, err
	}
	if r.Relay, err = offerFromWire(m.Relay); err != nil {
		return r, err
	}
	if len(m.Secret) == 0 { // a member that enrolls again needs none
		return r, nil
	}
	if r.Secret, err = key.ParseSecret(m.Secret); err != nil {
		return r, problem(KindInvalid, "", "the invite's secret is malformed")
	}
	return r, nil
}

// peerAddr reads an HTTP peer's address; in-memory transports have none.
func peerAddr(s string) netip.Addr {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.IPv6Unspecified()
	}
	return ap.Addr()
}

// Report takes a node's heartbeat, and what it advertises.
func (s nodeService) Report(ctx context.Context, req *connect.Request[api.ReportRequest]) (*connect.Response[api.ReportResponse], error) {
	n, err := s.member(req.Header())
	if err != nil {
		return nil, wireError(err)
	}
	if !s.presence.report(n.ID, req.Msg.Session, s.o.Now()) {
		return nil, wireError(problem(KindNotFound, "", "there is no such session"))
	}
	if a := req.Msg.Applied; a != nil { // first: somebody may be waiting for it
		s.presence.apply(n.ID, Applied{a.MapVersion, int(a.FlowsCut)})
	}
	if a := req.Msg.Advertise; a != nil {
		ctx := withAct(ctx, act{who: "node:" + n.Name, node: n.Name, from: peerAddr(req.Peer().Addr).String(), call: "Report"})
		if err := s.advertise(ctx, n, a.Prefixes); err != nil {
			return nil, s.refuse("report", err)
		}
	}
	if a := req.Msg.Attached; a != nil {
		now := s.o.Now()
		if s.presence.attach(now, n.ID, attachedFromWire(a.Attached)) {
			s.presence.mark(now, false, []uint32{n.Label})
		}
	}
	if k := req.Msg.Wireguard; len(k) > 0 {
		ctx := withAct(ctx, act{who: "node:" + n.Name, node: n.Name, from: peerAddr(req.Peer().Addr).String(), call: "Rekey"})
		if err := s.rekey(ctx, n, k); err != nil {
			return nil, s.refuse("report", err)
		}
	}
	return connect.NewResponse(&api.ReportResponse{}), nil
}

// offer takes what a relay says that it serves now.
func (s nodeService) offer(ctx context.Context, n *nodeRecord, w *api.RelayOffer) error {
	o, err := offerFromWire(w)
	if err != nil {
		return err
	}
	ctx = withAct(ctx, act{who: "node:" + n.Name, node: n.Name, call: "Offer"})
	return s.changeOwn(ctx, n, func(snap *snapshot) ([]Record, error) {
		if err := snap.checkOffer(s.o.Relay, n.Machine, o); err != nil {
			return nil, err
		}
		return snap.offer(n.ID, o)
	})
}

func (s nodeService) advertise(ctx context.Context, n *nodeRecord, texts []string) error {
	ps, err := parsePrefixes(texts)
	if err != nil {
		return err
	}
	return s.changeOwn(ctx, n, func(snap *snapshot) ([]Record, error) { return snap.advertise(n.ID, ps) })
}
