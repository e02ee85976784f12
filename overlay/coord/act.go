package coord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"overlayd/overlay/record"
)

// act is who does something, from where, and what. It travels with the context
// of a call.
type act struct {
	who     string // user:NAME, node:NAME, or one of the words below
	node    string // the name of the node that it came from
	member  *nodeRecord
	from    string // an address, or "socket"
	call    string
	request json.RawMessage
}

const (
	byLocal       = "local" // whoever may open the socket on the coordinator's machine
	byCoordinator = "coordinator"
)

// tally counts what a change ended of what guests had begun. It travels with the
// context of a call, and is the call's alone.
type tally struct{ n int }

type tallyKey struct{}

func withTally(ctx context.Context) (context.Context, *tally) {
	t := &tally{}
	return context.WithValue(ctx, tallyKey{}, t), t
}

// tallyOf returns the tally of a call; one that nobody asked for counts for
// nobody.
func tallyOf(ctx context.Context) *tally {
	if t, ok := ctx.Value(tallyKey{}).(*tally); ok {
		return t
	}
	return &tally{}
}

func (t *tally) add(n int) { t.n += n }

// join adds what was ended on the coordinator's own machine to the acks.
func (t *tally) join(acks []Ack, own *nodeRecord) []Ack {
	if t.n == 0 || own == nil {
		return acks
	}
	for i := range acks {
		if acks[i].Node == own.Name {
			acks[i].FlowsCut += t.n
			return acks
		}
	}
	acks = append(acks, Ack{Node: own.Name, Online: true, Applied: true, FlowsCut: t.n})
	slices.SortFunc(acks, func(a, b Ack) int { return strings.Compare(a.Node, b.Node) })
	return acks
}

type actKey struct{}

func withAct(ctx context.Context, a act) context.Context { return context.WithValue(ctx, actKey{}, a) }

// actOf returns who is behind a call; what nobody asked for is the
// coordinator's own.
func actOf(ctx context.Context) act {
	if a, ok := ctx.Value(actKey{}).(act); ok {
		return a
	}
	return act{who: byCoordinator, call: "Change"}
}

// Events is the record of what was changed, and of what was refused.
type Events struct {
	Dir  string
	Name string
	Log  *record.Log // of that name in that directory, chained
}

// Event is one line of the record. Fields are only ever added.
type Event struct {
	Time     time.Time       `json:"time"`
	Who      string          `json:"who"`
	Node     string          `json:"node,omitempty"`
	From     string          `json:"from,omitempty"`
	Call     string          `json:"call"`
	About    []string        `json:"about,omitempty"` // what was changed: user:NAME, node:NAME and so on
	Request  json.RawMessage `json:"request,omitempty"`
	Refused  string          `json:"refused,omitempty"`  // why; empty: it was done
	Revision uint64          `json:"revision,omitempty"` // of the store after it
	// Undo is what the records were before: with it the members and the policy
	// of any moment can be worked out.
	Undo []Undo `json:"undo,omitempty"`
}

// Undo is a record before a change; without a value it was not there.
type Undo struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value,omitempty"`
}

// recordChange writes down a commit of this coordinator.
func (s *Server) recordChange(ctx context.Context, c change) {
	if s.o.Events == nil || c.records == nil {
		return
	}
	e := s.event(actOf(ctx))
	e.Revision = c.next.rev
	for _, r := range c.records {
		if !bearsOnAccess(r) && !strings.HasPrefix(r.Key, keyRequest) && r.Key != keyNetwork {
			continue // an invite holds a hash of its secret; logins and exposures hold secrets
		}
		e.Undo = append(e.Undo, Undo{r.Key, c.old.before(r.Key)})
	}
	e.About = about(c)
	s.o.Events.Log.Append(e)
}

// about names what a change is about, as it is called after it or, when it is
// gone, before.
func about(c change) (list []string) {
	for _, r := range c.records {
		kind, id, _ := strings.Cut(r.Key, "/")
		s := c.next
		if r.Value == nil {
			s = c.old
		}
		switch kind {
		case "node":
			if n := s.nodes[id]; n != nil {
				id = n.Name
			}
		case "user":
			if u := s.users[id]; u != nil {
				id = u.Name
			}
		case "group":
			if g := s.groups[id]; g != nil {
				id = g.Name
			}
		case "policy":
			id = strings.TrimLeft(id, "0")
		case "sshkey":
			if k := s.sshKeys[id]; k != nil {
				id = k.info(s).Fingerprint
			}
		case "login":
			if u := s.users[id]; u != nil {
				id = u.Name
			}
		case "retired", "network":
			continue
		}
		list = append(list, kind+":"+id)
	}
	return list
}

func (s *Server) event(a act) Event {
	return Event{Time: s.o.Now().UTC(), Who: a.who, Node: a.node, From: a.from, Call: a.call, Request: a.request}
}

// recordRefusal writes down a call that was not done.
func (s *Server) recordRefusal(ctx context.Context, err error) {
	if s.o.Events == nil {
		return
	}
	e := s.event(actOf(ctx))
	e.Refused, e.Revision = "the coordinator failed", s.ledger.now().rev
	if p, ok := errors.AsType[*Problem](err); ok {
		e.Refused = p.Message
	}
	s.o.Events.Log.Append(e)
}

// before returns what a record was, without secrets.
func (s *snapshot) before(key string) json.RawMessage {
	var r Record
	if id, ok := strings.CutPrefix(key, keyNode); ok && s.nodes[id] != nil {
		n := *s.nodes[id]
		if n.Relay != nil {
			public := *n.Relay
			public.Secret = nil
			n.Relay = &public
		}
		r = putNode(n)
	} else if id, ok := strings.CutPrefix(key, keyUser); ok && s.users[id] != nil {
		r = putUser(*s.users[id])
	} else if id, ok := strings.CutPrefix(key, keyGroup); ok && s.groups[id] != nil {
		r = putGroup(*s.groups[id])
	} else if id, ok := strings.CutPrefix(key, keyGrant); ok && s.grants[id] != nil {
		r = putGrant(*s.grants[id])
	} else if id, ok := strings.CutPrefix(key, keyRequest); ok && s.requests[id] != nil {
		r = putRequest(*s.requests[id])
	} else if _, ok := strings.CutPrefix(key, keyPolicy); ok {
		for v, p := range s.policies {
			if policyKey(v) == key {
				r = putPolicy(*p)
			}
		}
	} else if key == keyNetwork && s.network.Overlay.IsValid() {
		public := s.network
		public.Signer = nil
		r = put(keyNetwork, public)
	}
	return r.Value
}

// noteGap says so when the last start ended between a commit and its line.
func (s *Server) noteGap() {
	if s.o.Events == nil {
		return
	}
	var last Event
	line := s.o.Events.Log.Last()
	if line == nil || json.Unmarshal(line, &last) != nil {
		return
	}
	if rev := s.ledger.now().rev; last.Revision > 0 && last.Revision < rev {
		e := s.event(act{who: byCoordinator, call: "Recover"})
		e.Refused = fmt.Sprintf("the coordinator was stopped before it had recorded the changes %d to %d", last.Revision+1, rev)
		e.Revision = rev
		s.o.Events.Log.Append(e)
	}
}

// snapshotAt returns the members and the policy as they were at a time.
func (s *Server) snapshotAt(ctx context.Context, at time.Time) (*snapshot, error) {
	if s.o.Events == nil {
		return nil, problem(KindNotFound, "ask about now", "this coordinator keeps no record")
	}
	if err := s.o.Events.Log.Sync(ctx); err != nil {
		return nil, problem(KindUnreachable, "look at overlayd status there", "the record cannot be written now: %v", err)
	}
	records, rev, err := s.o.Store.Load(ctx)
	if err != nil {
		return nil, err
	}
	values := make(map[string][]byte, len(records))
	for _, r := range records {
		values[r.Key] = r.Value
	}
	undone := map[string]bool{}
	covered := false // the record reaches back to the time
	err = record.Read(s.o.Events.Dir, s.o.Events.Name, func(line []byte) error {
		var e Event
		if json.Unmarshal(line, &e) != nil {
			return nil // Verify tells of it
		}
		if !e.Time.After(at) {
			covered = true
			return nil
		}
		for _, u := range e.Undo {
			if !undone[u.Key] { // the oldest change after the time has the value of the time
				undone[u.Key], values[u.Key] = true, u.Value
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !covered {
		return nil, problem(KindNotFound, "choose a later time", "the record does not reach back to %s", at.UTC().Format(time.RFC3339))
	}
	records = records[:0]
	for k, v := range values {
		if len(v) > 0 {
			records = append(records, Record{k, v})
		}
	}
	return newSnapshot(rev, records)
}
