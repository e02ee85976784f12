package coord

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"overlayd/overlay/coord/api"
)

// everybodys are the calls that a member without the role of admin may make: they
// concern the caller only.
var everybodys = map[string]bool{
	api.AdminRequestAccessProcedure: true,
	api.AdminListRequestsProcedure:  true,
	api.AdminListGrantsProcedure:    true,
	api.AdminExplainProcedure:       true,
}

// mutates reports whether a call may change something.
func mutates(procedure string) bool {
	verb := procedure[strings.LastIndexByte(procedure, '/')+1:]
	for _, asks := range []string{"List", "Get", "Try", "Explain", "Verify"} {
		if strings.HasPrefix(verb, asks) {
			return false
		}
	}
	return true
}

// syncTime is how long a call waits for its line in the record.
const syncTime = time.Second

// guard lets through who may make a call, records what was refused, and makes
// all errors ready for the wire.
func (s *Server) guard(local bool) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			procedure := req.Spec().Procedure
			a, err := s.admit(req, local)
			if err == nil {
				ctx = withAct(ctx, a)
				err = s.allow(ctx, a, procedure)
			}
			if err != nil {
				return nil, s.refuse(procedure, err)
			}
			resp, err := next(ctx, req)
			if !mutates(procedure) {
				if err != nil {
					return nil, s.refuse(procedure, err)
				}
				return resp, nil
			}
			if err != nil {
				s.recordRefusal(ctx, err)
				return nil, s.refuse(procedure, err)
			}
			s.syncEvents(ctx)
			return resp, nil
		}
	}
}

// syncEvents waits a little for the record: what was answered is in it, as long
// as it can be written.
func (s *Server) syncEvents(ctx context.Context) {
	if s.o.Events == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	if err := s.o.Events.Log.Sync(ctx); err != nil {
		s.o.Log.Warn("a change is not in the record yet", "err", err)
	}
}

// admit finds out who makes a call.
func (s *Server) admit(req connect.AnyRequest, local bool) (act, error) {
	procedure := req.Spec().Procedure
	a := act{who: byLocal, from: "socket", call: procedure[strings.LastIndexByte(procedure, '/')+1:]}
	if mutates(procedure) {
		a.request = requestText(req)
	}
	if local {
		return a, nil
	}
	n, err := nodeService{s}.member(req.Header())
	if err != nil {
		return a, err
	}
	a.member, a.node, a.who = n, n.Name, "node:"+n.Name
	a.from = peerAddr(req.Peer().Addr).String()
	if user := s.ledger.now().userOf(n); user != "" {
		a.who = "user:" + user
	}
	return a, nil
}

// allow refuses and records what somebody may not do. Who is refused too often
// is kept waiting: the record must not be flooded.
func (s *Server) allow(ctx context.Context, a act, procedure string) error {
	if a.member == nil {
		return nil
	}
	snap := s.ledger.now()
	n := snap.nodes[a.member.ID]
	var err error
	switch u := ownerOf(snap, n); {
	case n == nil:
		return errNotMember
	case snap.stateOf(n) == NodeExpired:
		err = problem(KindDenied, renewHint(n.Name, snap.userOf(n)), "the key of %s expired at %s", n.Name, n.Expires.Format(time.RFC3339))
	case snap.stateOf(n) != NodeActive:
		err = problem(KindDenied, "ask an admin", "the node %s is %s", n.Name, snap.stateOf(n))
	case everybodys[procedure] || u != nil && u.Admin:
		return nil
	default:
		err = problem(KindDenied, "ask an admin, or run it on the VPS as root; there, overlayd admin add makes a user one",
			"%s has not the role of admin", strings.TrimPrefix(a.who, "user:"))
	}
	at, now := addrOf(snap.network.Overlay, n.Label), s.o.Now()
	if wait := s.refusals.Wait(at, now); wait > 0 {
		return problem(KindDenied, "wait "+wait.Round(time.Second).String(), "too many refused calls from the node %s", n.Name)
	}
	s.refusals.Add(at, now)
	s.recordRefusal(ctx, err)
	return err
}

// renewHint is what to do about a key that has expired, or is about to.
func renewHint(node, user string) string {
	return "an admin says overlayd nodes renew " + node + ", or overlayd invite --user " + user + " and the link goes to overlayd renew"
}

// ownerOf returns whose node it is, if anybody's.
func ownerOf(snap *snapshot, n *nodeRecord) *userRecord {
	if n == nil {
		return nil
	}
	return snap.users[n.User]
}

// maxRecorded is how much of a request goes into the record; of a longer one
// only what names it.
const maxRecorded = 64 << 10

// secretFields are what a request may hold that is nobody's to read later.
var secretFields = []protoreflect.FullName{
	"overlayd.coord.v1.SetPasswordRequest.password",
	"overlayd.coord.v1.AddExposureRequest.key",
}

// withoutSecrets returns a message as it may be recorded.
func withoutSecrets(m proto.Message) proto.Message {
	for _, name := range secretFields {
		r := m.ProtoReflect()
		if f := r.Descriptor().Fields().ByName(name.Name()); f != nil && f.FullName() == name && r.Has(f) {
			m = proto.Clone(m)
			m.ProtoReflect().Set(f, protoreflect.ValueOfString("hidden"))
		}
	}
	return m
}

func requestText(req connect.AnyRequest) json.RawMessage {
	m, ok := req.Any().(proto.Message)
	if !ok {
		return nil
	}
	m = withoutSecrets(m)
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil
	}
	if len(b) > maxRecorded {
		sum := sha256.Sum256(b)
		b, err = json.Marshal(map[string]any{"bytes": len(b), "sha256": hex.EncodeToString(sum[:])})
		if err != nil {
			return nil
		}
	}
	return b
}
