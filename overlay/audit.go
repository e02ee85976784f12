package overlay

import (
	"context"
	"encoding/json"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"overlayd/overlay/record"
)

// AuditQuery says which lines of the record are wanted.
type AuditQuery struct {
	Follow bool      // go on with what comes
	User   string    // "": of everybody
	Host   string    // a node's name, an address or a prefix; "": all
	Since  time.Time // zero: all there is
	Denied bool      // only what was refused
}

// auditLine is what every line of a record may say of itself.
type auditLine struct {
	At      time.Time `json:"time"`
	User    string    `json:"user"` // of a flow
	Who     string    `json:"who"`  // changed something: user:NAME, node:NAME or another word
	Node    string    `json:"node"`
	Source  string    `json:"source"`
	Target  string    `json:"target"`
	Verdict string    `json:"verdict"` // of a flow
	Refused string    `json:"refused"` // why a change was not made
	Seq     uint64    `json:"seq"`
}

// wants reports whether a line is asked for.
func (q *AuditQuery) wants(l *auditLine) bool {
	switch {
	case !l.At.After(q.Since) && !q.Since.IsZero():
		return false
	case q.Denied && l.Verdict != "denied" && l.Refused == "":
		return false
	case q.User != "" && q.User != l.User && q.User != strings.TrimPrefix(l.Who, "user:"):
		return false
	case q.Host == "" || q.Host == l.Node:
		return true
	}
	return isAt(q.Host, l.Source) || isAt(q.Host, l.Target)
}

// isAt reports whether an address, with a port or without, is the one that is
// asked for, or in the prefix that is.
func isAt(want, end string) bool {
	if want == end {
		return true
	}
	a, err := addrIn(end)
	if err != nil {
		return false
	}
	if p, err := netip.ParsePrefix(want); err == nil {
		return p.Contains(a)
	}
	w, err := netip.ParseAddr(want)
	return err == nil && w == a
}

// addrIn reads ADDR or ADDR:PORT.
func addrIn(s string) (netip.Addr, error) {
	if at, err := netip.ParseAddrPort(s); err == nil {
		return at.Addr(), nil
	}
	return netip.ParseAddr(s)
}

// VerifyRecord checks a copy of the record of changes: a directory with its files,
// or one of them. kept is a head that was kept elsewhere; "": there is none.
func VerifyRecord(path, kept string) (record.Verified, error) {
	return record.VerifyCopy(path, eventsName, kept)
}

// followEvery is how often records that this node does not write itself are
// looked at for new lines.
const followEvery = time.Second

// followOverlap is how far back a line of a flow may date that is written now: a
// busy filter tells of what it saw a while later. Such lines may come twice, out of
// the file and as they are made.
const followOverlap = 5 * time.Second

// audit hands the wanted lines to each, the oldest first. The lines are
// borrowed.
func (n *Node) audit(ctx context.Context, q AuditQuery, each func(line []byte) error) error {
	var coming <-chan FlowLine
	if q.Follow {
		lines, stop := n.flows.follow() // before reading, so that nothing is missed
		defer stop()
		coming = lines
	}
	if err := n.flows.sync(ctx); err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	names := []string{flowsName}
	if n.hub != nil && n.hub.coord != nil {
		if err := n.hub.coord.events.Sync(ctx); err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		names = append(names, eventsName)
	}
	a := auditor{dir: n.o.StateDir, query: q, each: each, seen: map[string]uint64{}}
	if q.Follow {
		a.recent, a.since = map[string]bool{}, time.Now().Add(-followOverlap)
	}
	if err := a.read(names...); err != nil || !q.Follow {
		return err
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-coming:
			b, err := json.Marshal(l)
			if err != nil {
				return err
			}
			if a.recent[string(b)] {
				continue // it was read already
			}
			if err := a.take("", b); err != nil {
				return err
			}
		case <-tick.C:
			if err := a.read(names[1:]...); err != nil {
				return err
			}
		}
	}
}

// auditor reads records.
type auditor struct {
	dir   string
	query AuditQuery
	each  func([]byte) error
	seen  map[string]uint64 // by record, the number of the last line that was read

	// recent are the lines of flows since a moment, as they are in the file; nil:
	// nobody asks.
	recent map[string]bool
	since  time.Time
}

// take hands on a line of a record, or of none, if it is wanted.
func (a *auditor) take(name string, line []byte) error {
	var l auditLine
	if json.Unmarshal(line, &l) != nil {
		return nil // it is not ours
	}
	a.seen[name] = l.Seq
	if a.recent != nil && name == flowsName && l.At.After(a.since) {
		a.recent[string(line)] = true
	}
	if !a.query.wants(&l) {
		return nil
	}
	return a.each(line)
}

// read merges records by time, and leaves out what was read before by its
// number.
func (a *auditor) read(names ...string) error {
	type source struct {
		name string
		next func() (recorded, bool)
		head recorded
	}
	var open []*source
	for _, name := range names {
		next, stop := iter.Pull(lines(a.dir, name))
		defer stop()
		if head, ok := next(); ok {
			open = append(open, &source{name, next, head})
		}
	}
	seen := maps.Clone(a.seen)
	for len(open) > 0 {
		s := slices.MinFunc(open, func(a, b *source) int { return a.head.at.Compare(b.head.at) })
		if s.head.err != nil {
			return s.head.err
		}
		if s.head.seq == 0 || s.head.seq > seen[s.name] {
			if err := a.take(s.name, s.head.line); err != nil {
				return err
			}
		}
		var ok bool
		if s.head, ok = s.next(); !ok {
			open = slices.DeleteFunc(open, func(o *source) bool { return o == s })
		}
	}
	return nil
}

// recorded is one line, or why there are no more.
type recorded struct {
	at   time.Time
	seq  uint64
	line []byte
	err  error
}

// lines goes through a record. A line is borrowed until the next.
func lines(dir, name string) iter.Seq[recorded] {
	return func(yield func(recorded) bool) {
		err := record.Read(dir, name, func(line []byte) error {
			var l auditLine
			_ = json.Unmarshal(line, &l) // what is not ours has no time, and comes first
			if !yield(recorded{at: l.At, seq: l.Seq, line: line}) {
				return errEnough
			}
			return nil
		})
		if err != nil && err != errEnough {
			yield(recorded{err: err})
		}
	}
}

// errEnough ends a Read.
var errEnough = fault(ExitOK, "", "enough")
